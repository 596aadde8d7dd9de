"""Draw a comparison on one page: how good each variant was over seconds and over samples, how fast it was, where its time went.

Each panel's title states its finding. A variant keeps its colour in all panels; the one process is grey and dashed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpidml.core.target import Target
from mpidml.runtime.comparison import SAME, Row, basis, best, in_seconds, number, per_second, ranking, scores, speed, times, with_ending
from mpidml.runtime.plot_style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, QUIET, RED, SKY, STYLE
from mpidml.runtime.report import Array, column, legend, smoothed
from mpidml.runtime.work_plot import count, nothing_learnt, staleness, work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE)
_MARKERS = "s^Dv<>PX*"
_LEGEND, _ROW, _TITLE = 46, 26, 20  # letters of a name
_FEW = 20  # points up to which each is marked


class Curve(NamedTuple):
    """Hold the quality of one variant over seconds and over samples."""

    seconds: Array
    samples: Array
    values: Array


def draw(path: str | Path, entries: Sequence[Row], curves: Sequence[Sequence[Row]], target: Target | None) -> None:
    """Draw the comparison of `entries` (rows of compare.json) and their metrics, in the same order, to the PNG file `path`."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        page(entries, curves, target).savefig(path, format="png")


def page(entries: Sequence[Row], curves: Sequence[Sequence[Row]], target: Target | None) -> Figure:
    """Return the page: quality over seconds, the same over samples, speed of each variant, share of its time; `curves` may be empty."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key, label = _quality(entries, curves, target)
    lines = [_curve(each, rows, key) for each, rows in zip(entries, [*curves, *([()] * len(entries))], strict=False)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 8.4), dpi=140, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(0.012, 0.972, _headline(entries), fontsize=15, fontweight="bold", va="center")
        figure.text(0.012, 0.934, _details(entries, target), fontsize=9.5, color=QUIET, va="center")
        (over_seconds, over_samples), (race, shares) = figure.subplots(2, 2)
        n_lines = _names(figure, entries)
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.12, h_pad=0.1, wspace=0.05, hspace=0.06, rect=(0, 0, 1, 0.905 - 0.026 * n_lines))
        if nothing_learnt(entries):
            work(over_seconds, entries, curves, looks := [_look(i) for i in range(len(entries))])
            staleness(over_samples, curves, looks)
        else:
            _quality_over(over_seconds, "seconds", entries, lines, key, label, target)
            _quality_over(over_samples, "samples", entries, lines, key, label, target)
            over_seconds.set_title(_title_over_seconds(entries, lines, key, label, target))
            over_samples.set_title(_title_over_samples(entries, lines, target))
        _race(race, entries, target)
        _shares(shares, entries)
    return figure


def _headline(entries: Sequence[Row]) -> str:
    n, ranks = len(entries) - 1, max(each.get("ranks") or 1 for each in entries)
    beside = f", {n} variant{'s' * (n != 1)} on {ranks} rank{'s' * (ranks != 1)}" if n else ""
    return f"{entries[0].get('model', 'a model')} on {Path(entries[0].get('data', 'data')).name}{beside}, {'and ' * (n > 0)}one process"


def _details(entries: Sequence[Row], target: Target | None) -> str:
    """Say what all variants share; a flag that varies is in their names."""
    parts = [f"target: {target}"] if target is not None else []
    for words, key in (("optimizer", "optimizer"), ("learning rate", "learning_rate"), ("batch", "batch"), ("seed", "seed")):
        values = {each.get(key) for each in entries}
        if len(values) == 1 and None not in values:
            parts.append(f"{words} {values.pop()}")
    return "   |   ".join(parts)


def _names(figure: Figure, entries: Sequence[Row]) -> int:
    """Write the legend of all variants above the panels; return how many lines it takes."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_look(i), label=_name(each, _LEGEND) + " (diverged)" * _diverged(each)) for i, each in enumerate(entries)]
    longest = max(len(str(handle.get_label())) for handle in handles)
    n_columns = max(1, min(len(handles), 170 // (longest + 8)))
    n_lines = -(-len(handles) // n_columns)
    by_row = [handles[i] for column in range(n_columns) for i in range(column, len(handles), n_columns)]  # matplotlib fills columns first
    figure.legend(handles=by_row, loc="upper left", bbox_to_anchor=(0.004, 0.918), ncols=n_columns, handlelength=2.6)
    return n_lines


def _quality(entries: Sequence[Row], curves: Sequence[Sequence[Row]], target: Target | None) -> tuple[str, str]:
    """Choose what is drawn as quality: what the target is about, else validation or test accuracy, else the training loss; the first that was measured."""
    for key in ([] if target is None else [target.key]) + ["val_accuracy", "test_accuracy"]:
        if any(scores(row, key) for rows in curves for row in rows) or any(scores(each, key) for each in entries):
            return key, key.replace("val_", "validation_").replace("_", " ")
    return "loss", "training loss"


def _curve(each: Row, rows: Sequence[Row], key: str) -> Curve:
    """Return the points of a variant that are finite, up to where it diverged; the training loss is smoothed."""
    end = each["diverged_at_clock"] if _diverged(each) else math.inf
    rows = list(takewhile(lambda row: row["clock"] < end, rows))
    if key == "loss":
        points = np.stack([column(rows, "seconds"), column(rows, "samples"), smoothed(column(rows, key), column(rows, "clock"))])
    else:
        scored = rows if _diverged(each) else with_ending(each, rows)
        found = [(row["seconds"], row["samples"], value) for row in scored for value in scores(row, key)]
        points = np.array(found, dtype=float).reshape(-1, 3).T
    return Curve(*points[:, np.isfinite(points).all(axis=0)])


def _quality_over(axes: Axes, over: str, entries: Sequence[Row], lines: Sequence[Curve], key: str, label: str, target: Target | None) -> None:
    """Draw the quality of all variants over seconds or samples; a cross where a diverged one ends, a thin line at the target."""
    from matplotlib.ticker import LogLocator

    axes.set_xlabel(over)
    axes.set_ylabel(label + ", smoothed" * any(key == "loss" and line.values.size > 2 * _FEW for line in lines))
    if not any(line.values.size for line in lines):
        return _say_nothing(axes, "no finite loss" if key == "loss" else f"no {label}")
    for i, line in enumerate(lines):
        x, n = getattr(line, over), line.values.size
        # One process last: bsp computes the same, and its dashes must show on top.
        axes.plot(x, line.values, **_look(i), markevery=1 if n <= _FEW else max(1, n // 8), zorder=3 if i == 0 else 2)
        if n and _diverged(entries[i]):
            axes.plot(x[-1], line.values[-1], "x", color=_look(i)["color"], markersize=10, markeredgewidth=2.4, zorder=4)
    ends = [getattr(line, over)[-1] for line in lines if line.values.size]
    xs, values = (np.concatenate([getattr(line, of) for line in lines]) for of in (over, "values"))
    at = target.value if target is not None and target.key == key else math.inf
    if at < math.inf:
        axes.axhline(at, color=INK, linewidth=0.8, zorder=1)
        axes.annotate(f"target\n{at:g}", (1, at), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", fontsize=8, color=QUIET, annotation_clip=False)  # fmt: skip
        values = np.append(values, at)
    if max(ends) > 15 * min(ends) and xs.min() > 0:
        axes.set_xscale("log")
    elif over == "samples":
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
    if key.endswith("accuracy"):
        # Variants differ where they end, so nothing is shown below six times the least error, unless a variant was never better.
        never_better = min(line.values.max() for line in lines if line.values.size)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], min(1 - 6 * max(1 - values.max(), 0.02), never_better - 0.02, at - 0.02)))
    elif values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    for axis, shown in ((axes.xaxis, xs), (axes.yaxis, values)):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if shown.max() < 2000 * shown.min() else (1.0,)))
            axis.set_major_formatter(lambda value, _: count(value))
            axis.set_minor_formatter(lambda value, _: "")


def _title_over_seconds(entries: Sequence[Row], lines: Sequence[Curve], key: str, label: str, target: Target | None) -> str:
    """Say who reached the target first; without a target, who ended best."""
    ends = [(line.values[-1], each) for each, line in zip(entries, lines, strict=True) if line.values.size]
    if target is not None and basis(entries, target) == "seconds_to_target":
        first = ranking(entries, "seconds_to_target")[0]
        return f"First at {target.value:g}: {_name(first, _TITLE)}, after {in_seconds(first['seconds_to_target'])}"
    if target is not None and target.key == key and ends:
        return f"No variant reached {target}"
    if not ends:
        return "The loss was never finite"
    sound = [(value, each) for value, each in ends if not _diverged(each)]
    if not sound:
        return "Every variant diverged"
    top = (max if key.endswith("accuracy") else min)(value for value, _ in sound)
    return f"Best at the end: {label} {top:.3g} ({_whom([each for value, each in sound if value == top])})"


def _title_over_samples(entries: Sequence[Row], lines: Sequence[Curve], target: Target | None) -> str:
    """Say who needed the fewest samples to the target; without one, how far apart the variants were after as many samples as all saw."""
    if target is not None and basis(entries, target) == "seconds_to_target":
        fewest = min(samples for each in entries if (samples := number(each, "samples_to_target")) is not None)
        who = _whom([each for each in entries if number(each, "samples_to_target") == fewest])
        return f"Fewest samples to {target.value:g}: {fewest:,.0f} ({who})"
    sound = [line for each, line in zip(entries, lines, strict=True) if line.values.size and not _diverged(each)]
    seen = min((line.samples[-1] for line in sound), default=max(number(each, "samples") or 0 for each in entries))
    at = [line.values[line.samples <= seen][-1] for line in sound if line.samples[0] <= seen]
    low, high = (f"{pick(at, default=0.0):.3g}" for pick in (min, max))
    if len(at) < 2:
        return f"{seen:,.0f} samples were seen"
    return f"After {seen:,.0f} samples: {low} to {high}" if low != high else f"After {seen:,.0f} samples all are at {low}"


def _whom(those: Sequence[Row]) -> str:
    return _name(those[0], _TITLE) if len(those) == 1 else f"{len(those)} variants"


def _race(axes: Axes, entries: Sequence[Row], target: Target | None) -> None:
    """Draw a bar a variant, seconds to the target or else samples/s, and a line at that of one process."""
    key = basis(entries, target)
    to_target, values, one = key == "seconds_to_target", [number(each, key) for each in entries], number(entries[0], key)
    axes.set_xlabel(f"seconds to {target}" if to_target else "samples/s")
    top = max((value for value in values if value is not None), default=0.0)
    _name_rows(axes, entries)
    if top <= 0:
        return _say_nothing(axes, "no samples/s", "No speed was measured")
    show = in_seconds if to_target else per_second
    for i, value in enumerate(values):
        axes.barh(i, value or 0, height=0.72, color=_look(i)["color"])
        text = show(value) if value is not None else f"never, {best(entries[i], target)}" if target is not None and to_target else "-"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.annotate(text, (value or 0, i), (5, 0), textcoords="offset points", va="center", fontsize=8, color=INK if value else QUIET, bbox=box)
    if one is not None and len(entries) > 1:
        axes.axvline(one, color=QUIET, linewidth=1.2, linestyle="--", zorder=1.5)
    axes.set_xlim(0, 1.22 * top)
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    axes.set_title(_title_race(entries, key))


def _title_race(entries: Sequence[Row], key: str) -> str:
    """Say how the fastest variant compares with one process."""
    one, rivals, to_target = entries[0], ranking(entries[1:], key), key == "seconds_to_target"
    if not rivals:
        what = in_seconds(one[key]) if to_target else f"{per_second(one[key])} samples/s"
        return f"Only one process reached it: {what}" if to_target and len(entries) > 1 else f"One process: {what}"
    first = rivals[0]
    if number(one, key) is None:
        return f"{_name(first, _TITLE)} is the fastest" + "; one process never got there" * to_target
    ratio = speed(first, key) / max(speed(one, key), 1e-12)
    if 1 / SAME < ratio < SAME:
        return f"{_name(first, _TITLE)} is as fast as one process"
    if ratio > 1:
        return f"{_name(first, _TITLE)} is {times(ratio)} times as fast as one process"
    return f"One process is {times(1 / max(ratio, 1e-12))} times as fast as {_name(first, _TITLE)}"


def _shares(axes: Axes, entries: Sequence[Row]) -> None:
    """Draw a bar a variant of what its ranks did, and the mean staleness of its reads at the bar's end."""
    parts = np.array([[sum(value or 0.0 for value in each.get(f"{what}_seconds") or []) for each in entries] for what in ("compute", "wait", "comm")])
    whole, n = parts.sum(axis=0), len(entries)
    if not whole.any():
        return _say_nothing(axes, "no seconds", "No time was measured")
    share, left = 100 * parts / np.where(whole > 0, whole, 1), np.zeros(n)
    for row, colour, name in zip(share, (GREEN, ORANGE, BLUE), ("busy", "waiting", "communicating"), strict=True):
        axes.barh(range(n), row, left=left, height=0.72, color=colour, label=name)
        for i in np.flatnonzero(row >= 8).tolist():
            ink = INK if colour == ORANGE else "white"
            axes.text(left[i] + row[i] / 2, i, f"{row[i]:.0f}%", ha="center", va="center", color=ink, fontsize=8)
        left = left + row
    _name_rows(axes, entries)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axes.set_xlabel("share of the ranks' time")
    beside: Any = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8, "color": INK, "annotation_clip": False}
    for i, each in enumerate(entries):
        mean = number(each, "staleness_mean")
        axes.annotate("-" if mean is None else f"{mean:.2f}", (1, i), (16, 0), xycoords=("axes fraction", "data"), **beside)
    axes.annotate("mean\nstaleness", (1, 0), (16, -28), xycoords="axes fraction", **beside)
    legend(axes)
    worst = share[1].tolist().index(share[1].max())
    most = f"{share[1][worst]:.0f}%"
    axes.set_title(f"Waited most: {_name(entries[worst], _TITLE)}, {most} of its time" if most != "0%" else "No variant waited")


def _name_rows(axes: Axes, entries: Sequence[Row]) -> None:
    """Give each variant a row of its own from the top, and bars that are not too thick where there are few."""
    n = len(entries)
    spare = max(0, (3 - n) / 2)
    axes.set_ylim(n - 0.5 + spare, -0.5 - spare)
    axes.set_yticks(range(n), [_name(each, _ROW) for each in entries], fontsize=9 if n <= 6 else 8)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(False, axis="y")


def _say_nothing(axes: Axes, words: str, title: str = "") -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=QUIET, fontsize=11)
    axes.set(title=title, xticks=[], yticks=[])


def _look(i: int) -> dict[str, Any]:
    """Return how the line of variant i is drawn; a colour that comes back has another dash, and each has a marker of its own."""
    if i == 0:
        return {"color": GREY, "linestyle": "--", "linewidth": 1.8, "marker": "o", "markersize": 4}
    again, at = divmod(i - 1, len(_COLOURS))
    style = {"color": _COLOURS[at], "linestyle": "-." if again else "-", "marker": _MARKERS[(i - 1) % len(_MARKERS)]}
    return style | {"linewidth": 1.6, "markersize": 5}


def _diverged(each: Row) -> bool:
    return each.get("diverged_at_clock") is not None


def _name(each: Row, longest: int) -> str:
    name = str(each["variant"])
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip(', ')}…"
