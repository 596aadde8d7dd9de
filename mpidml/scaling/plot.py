"""Draw a scaling study on one page: speed-up and efficiency over ranks, of each kind; what was measured are marks, what was simulated is a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidml.runtime.plot_style import BLUE, GREY, INK, ORANGE, QUIET, STYLE
from mpidml.runtime.work_plot import count
from mpidml.scaling.text import is_shared, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
COLOURS = {"strong": BLUE, "weak": ORANGE}
WORDS = {"strong": "the batch stays", "weak": "a rank's share stays"}


def draw(path: str | Path, study: Mapping[str, Any]) -> None:
    """Draw a study (what scale.json holds) to the PNG file `path`."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        page(study).savefig(path, format="png")


def page(study: Mapping[str, Any]) -> Figure:
    """Return the page: a column for each kind that has rows, speed-up above efficiency."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = {kind: [row for row in study["rows"] if row["kind"] == kind] for kind in COLOURS}
    kinds = {kind: rows for kind, rows in kinds.items() if _with(rows, "speed_up") or _with(rows, "simulated_speed_up")}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6 * max(len(kinds), 1) + 1, 8.4), dpi=140, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        name = study["strategy"].replace("_", " ") + f" under {study['sync']}" * (study["strategy"] == "parameter_server")
        figure.text(0.012, 0.972, f"How {name} scales", fontsize=15, fontweight="bold", va="center")
        figure.text(0.012, 0.938, f"{study['model']} on {Path(study['data']).name}; {study['assumed']}", fontsize=8.5, color=QUIET, va="center")
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.12, h_pad=0.1, wspace=0.05, hspace=0.06, rect=(0, 0, 1, 0.915))
        panels = figure.subplots(2, max(len(kinds), 1), squeeze=False)
        for column, (kind, rows) in enumerate(kinds.items()):
            _speed_up(panels[0][column], kind, rows)
            _efficiency(panels[1][column], kind, rows)
    return figure


def _speed_up(axes: Axes, kind: str, rows: Sequence[Row]) -> None:
    fewest, simulated, ranks = rows[0]["relative_to"], rows[0]["simulated_relative_to"], _ranks(rows)
    axes.plot(ranks, [n / fewest for n in ranks], color=GREY, linewidth=0.9, label="ideal")
    _both(axes, kind, rows, "speed_up")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: count(value))
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    other = f" (simulated: over {simulated})" * (simulated != fewest)
    axes.set_ylabel(f"speed-up over {fewest} rank{'s' * (fewest > 1)}{other}" + ", in samples/s" * (kind == "weak"))
    axes.set_title(_title(kind, rows))
    axes.legend(loc="upper left")


def _title(kind: str, rows: Sequence[Row]) -> str:
    """Say the best of all, measured or simulated."""
    found = [(row[key], row["ranks"], words) for key, words in (("speed_up", "measured"), ("simulated_speed_up", "simulated")) for row in _with(rows, key)]
    best, n, words = max(found)
    return f"{kind.capitalize()}, {WORDS[kind]}: {times(best)} times on {n:,} rank{'s' * (n > 1)} ({words})"


def _efficiency(axes: Axes, kind: str, rows: Sequence[Row]) -> None:
    axes.axhline(1.0, color=GREY, linewidth=0.9)
    _both(axes, kind, rows, "efficiency")
    top = max([1.0, *(row[key] for key in ("efficiency", "simulated_efficiency") for row in _with(rows, key))])
    axes.set_ylim(0, 1.08 * top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.set_ylabel("efficiency")
    if simulated := _with(rows, "simulated_efficiency"):
        half = next((row["ranks"] for row in simulated if row["simulated_efficiency"] < 0.5), None)
        axes.set_title(f"Below half from {half:,} ranks on (simulated)" if half else "Nowhere below half (simulated)")
    for row in _with(rows, "efficiency"):
        if is_shared(row):
            axes.annotate(f"{row['cores']} cores:\nshared", (row["ranks"], row["efficiency"]), (0, -9), textcoords="offset points", ha="center", va="top",
                          fontsize=7.5, color=INK)  # fmt: skip


def _both(axes: Axes, kind: str, rows: Sequence[Row], key: str) -> None:
    """Draw what was simulated as a line, and what was measured as marks: empty ones where ranks shared cores."""
    line = _with(rows, f"simulated_{key}")
    axes.plot([row["ranks"] for row in line], [row[f"simulated_{key}"] for row in line], color=COLOURS[kind], linewidth=1.8, marker=".", label="simulated")
    for shared in (False, True):
        if marks := [row for row in _with(rows, key) if is_shared(row) == shared]:
            axes.plot([row["ranks"] for row in marks], [row[key] for row in marks], "o", color=COLOURS[kind], markersize=9, markeredgewidth=1.8,
                      markerfacecolor="white" if shared else COLOURS[kind], zorder=4, label="measured" + ", cores shared" * shared)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    if max(_ranks(rows)) <= 128 * min(_ranks(rows)):
        axes.set_xticks(_ranks(rows))
    axes.set_xlabel("ranks")


def _ranks(rows: Sequence[Row]) -> list[int]:
    return [row["ranks"] for row in rows if row.get("speed_up") is not None or row.get("simulated_speed_up") is not None]


def _with(rows: Sequence[Row], key: str) -> list[Row]:
    return [row for row in rows if row.get(key) is not None]
