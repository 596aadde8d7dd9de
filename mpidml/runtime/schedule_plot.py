"""Draw a replayed program of a pipeline: a row for each rank, a bar for each compute with the number of its microbatch, idle time grey."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidml.core.action import COMPUTE
from mpidml.core.program import Program
from mpidml.core.replay import Event, Replay
from mpidml.runtime.plot_style import BLUE, FAINT, GREEN, INK, ORANGE, QUIET, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"F": BLUE, "B": ORANGE, "I": ORANGE, "W": GREEN}
_NAMES = {"F": "forward", "B": "backward", "I": "backward: gradient of the input", "W": "backward: gradient of the weights"}
_INCHES, _DPI = 12.0, 140
_LETTER = 6.2  # points of a digit and its share of a margin
_MOST_NUMBERS, _LEAST_SIZE = 4000, 4.0
_MOST_UPDATES = 80  # of a stage
_REST = 2.0  # inches of what is above and below the bars
_MOST_SHADES = 3
_HEIGHT = 0.86  # of a bar in its row


def draw(path: str | Path, program: Program, run: Replay, headline: str, finding: str, details: str) -> None:
    """Draw `run` to the PNG file `path`."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        page(program, run, headline, finding, details).savefig(path, format="png")


def page(program: Program, run: Replay, headline: str, finding: str, details: str) -> Figure:
    """Return the picture: the headline says what was drawn, `finding` what is seen in it."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        height = _REST + min(max(0.42 * program.n_ranks, 0.6), 9.0)
        figure = Figure(figsize=(_INCHES, height), dpi=_DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(0.012, 1 - 0.24 / height, headline, fontsize=15, fontweight="bold", va="center")
        figure.text(0.012, 1 - 0.52 / height, details, fontsize=9.5, color=QUIET, va="center")
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.1, h_pad=0.06, rect=(0, 0, 1, 1 - 0.66 / height))
        axes = figure.subplots()
        _bars(axes, program, run)
        _numbers(axes, program, run, (height - _REST) * 72 / program.n_ranks)
        _waits_and_updates(axes, program, run)
        _legend(figure, program, run)
        axes.set_title(finding)
        axes.set_xlabel("units of time")
        if run.seconds >= 5:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, run.seconds or 1)
        axes.set_ylim(program.n_ranks - 0.5, -0.5)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        step = -(-program.n_ranks // 32)
        axes.set_yticks(range(0, program.n_ranks, step), [f"rank {rank}" for rank in range(0, program.n_ranks, step)])
    return figure


def _computes(run: Replay) -> list[Event]:
    return [event for event in run.events if event.action.op in COMPUTE]


def _colour(op: str, chunk: int, n_chunks: int) -> tuple[float, float, float]:
    """Return the colour of an operation, lighter for each further stage of the rank."""
    from matplotlib.colors import to_rgb

    light = 0.62 * chunk / n_chunks
    red, green, blue = (of + (1 - of) * light for of in to_rgb(_COLOURS[op]))
    return red, green, blue


def _bars(axes: Axes, program: Program, run: Replay) -> None:
    n, n_chunks = program.n_ranks, program.n_chunks
    for rank in range(n):
        axes.broken_barh([(0, run.seconds)], (rank - _HEIGHT / 2, _HEIGHT), facecolors=FAINT, linewidth=0)
    spans: dict[tuple[int, str, int], list[tuple[float, float]]] = defaultdict(list)
    for event in _computes(run):
        spans[event.rank, event.action.op, event.action.stage // n].append((event.start, event.end - event.start))
    shortest = _points(run) * min((seconds for of in spans.values() for _, seconds in of), default=0.0)
    look: Any = {"edgecolor": "white", "linewidth": min(0.6, 0.15 * shortest)} if shortest > 1.5 else {"linewidth": 0, "snap": False}
    for (rank, op, chunk), of in spans.items():
        axes.broken_barh(of, (rank - _HEIGHT / 2, _HEIGHT), facecolors=_colour(op, chunk, n_chunks), **look)


def _points(run: Replay) -> float:
    """Return how many points wide a unit of time is, nearly."""
    return 0.93 * _INCHES * 72 / run.seconds if run.seconds else 0.0


def _numbers(axes: Axes, program: Program, run: Replay, row_points: float) -> None:
    """Write the number of its microbatch into each bar of an operation whose longest numbers have room in its shortest bars."""
    of: dict[tuple[str, int], list[Event]] = defaultdict(list)
    for event in _computes(run):
        of[event.action.op, event.action.stage].append(event)
    size = min(8.0, 0.7 * row_points)
    n_chunks = program.n_chunks
    need = _LETTER * size / 8 * len(str(program.n_items - 1))
    if size < _LEAST_SIZE or sum(map(len, of.values())) > _MOST_NUMBERS:
        return
    for (op, stage), events in of.items():
        colour = INK if op in ("B", "I") or 2 * (stage // program.n_ranks) >= n_chunks else "white"
        if min(event.end - event.start for event in events) * _points(run) < need:
            continue
        for event in events:
            text = str(event.action.item)
            axes.text((event.start + event.end) / 2, event.rank, text, ha="center", va="center", fontsize=size, color=colour, clip_on=True)


def _waits_and_updates(axes: Axes, program: Program, run: Replay) -> None:
    """Draw a line where all wait for all, and a notch below the bars where weights change under way."""
    waits = sorted({event.end for event in run.events if event.action.op == "X"})
    axes.vlines(waits, -0.5, program.n_ranks - 0.5, color=INK, linewidth=min(0.7, 0.1 * _points(run)))
    if _marks_updates(program, run):
        at = [(event.end, event.rank + _HEIGHT / 2) for event in run.events if event.action.op == "U"]
        axes.plot(*zip(*at, strict=True), "^", color=INK, markersize=3.5, clip_on=False)


def _marks_updates(program: Program, run: Replay) -> bool:
    """Tell whether weights change under way, and not so often that nothing else would be seen."""
    ops = [event.action.op for event in run.events]
    return "V" in ops and ops.count("U") <= _MOST_UPDATES * program.n_stages


def _legend(figure: Figure, program: Program, run: Replay) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    n, n_chunks = program.n_ranks, program.n_chunks
    found = {event.action.op for event in run.events}
    handles: list[Any] = []
    for op in (op for op in COMPUTE if op in found):
        for chunk in range(n_chunks) if n_chunks <= _MOST_SHADES else (0, n_chunks - 1):
            stages = f", stages {chunk * n} to {chunk * n + n - 1}" if n > 1 else f", stage {chunk}"
            handles.append(Patch(facecolor=_colour(op, chunk, n_chunks), label=_NAMES[op] + stages * (n_chunks > 1)))
    handles.append(Patch(facecolor=FAINT, label="idle"))
    if "X" in found:
        handles.append(Line2D([], [], color=INK, linewidth=0.7, label="all wait for all"))
    if _marks_updates(program, run):
        handles.append(Line2D([], [], color=INK, marker="^", linestyle="", markersize=3.5, label="weights change"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
