"""Draw a run on one page: did it learn, what did it cost, where did the time go, how old were the reads.

Each panel's title states its finding; the figure shows why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidml.runtime.evaluation_text import figures
from mpidml.runtime.heads_plot import losses_of_heads
from mpidml.runtime.plot_style import BLUE, FAINT, GREEN, INK, ORANGE, QUIET, RED, SKY, STYLE
from mpidml.runtime.work_plot import count, nothing_learnt, staleness, work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
_N_LABELLED_RANKS = 16
MOST_BARS = 200


def draw(path: str | Path, summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the report of a run to the PNG file `path`. Takes about a second."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        page(summary, metrics).savefig(path, format="png")


def page(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the page of a run: loss over time, loss over samples, share of each rank's time, staleness of the reads.

    `summary` and `metrics` (at least one row) are those of the run's folder; losses may be NaN or None, accuracy may be missing.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 8), dpi=140, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.12, h_pad=0.1, wspace=0.05, hspace=0.06, rect=(0, 0, 1, 0.89))
        figure.text(0.012, 0.972, _headline(summary), fontsize=15, fontweight="bold", va="center")
        figure.text(0.012, 0.932, _details(summary), fontsize=9.5, color=QUIET, va="center")
        if others := summary.get("what_if"):
            text = ", ".join(f"{name} {ratio:.2f}" for name, ratio in others.items() if name != summary["sync"])
            figure.text(0.012, 0.905, f"times the clocks in the same time, simulated from this run's computes:  {text}", fontsize=8.5, color=QUIET, va="center")
        (over_time, over_samples), (ranks, histogram) = figure.subplots(2, 2)
        if nothing_learnt([summary]):
            look = {"color": BLUE, "linewidth": 2}
            work(over_time, [summary], [metrics], [look])
            staleness(over_samples, [metrics], [look])
        else:
            _loss_over_time(over_time, summary, metrics)
            _loss_over_samples(over_samples, metrics)
        _rank_time(ranks, summary)
        _staleness(histogram, summary)
    return figure


def _headline(summary: Mapping[str, Any]) -> str:
    n, parts = summary["ranks"], [str(summary["strategy"]).replace("_", " "), summary["sync"]]
    return "simulated: " * bool(summary.get("simulated")) + ", ".join([*filter(None, parts), f"{n} rank{'s' * (n != 1)}"])


def _details(summary: Mapping[str, Any]) -> str:
    goes_on = f" x {summary['lr_policy']}" if summary.get("lr_policy", "constant") != "constant" else ""
    parts = [f"{summary['optimizer']}, learning rate {summary['learning_rate']:g}{goes_on}"]
    parts.append(f"{summary['samples']:,} samples in {_seconds(summary['seconds'])} ({summary['samples_per_second'] or 0:,.0f}/s)")
    parts += figures(summary)
    if summary.get("best_epoch") is not None:
        parts.append(f"best after epoch {summary['best_epoch']:g}")
    parts.append(f"{nbytes(sum(summary['bytes_sent']))} sent")
    return "   |   ".join(parts)


def _loss_over_time(axes: Axes, summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training loss, and the accuracy or else the loss of the rows that were looked at, where it was measured; of several heads their losses."""
    seconds, loss = column(metrics, "seconds"), column(metrics, "loss")
    axes.set_xlabel("seconds")
    _loss_lines(axes, seconds, loss, column(metrics, "clock"))
    of, words = ("val", "validation") if any("val_loss" in row for row in metrics) else ("test", "test")
    accuracy, looked = column(metrics, f"{of}_accuracy"), column(metrics, f"{of}_loss")
    measured = np.isfinite(accuracy)
    if heads := {name: column(metrics, f"{of}_loss.{name}") for name in summary.get("heads", ())}:
        losses_of_heads(axes, seconds, heads, words, (RED, GREEN, ORANGE, INK))
        legend(axes)
    elif measured.any():
        right = axes.twinx()
        right.grid(False)
        right.spines["right"].set_visible(True)
        right.plot(seconds[measured], 100 * accuracy[measured], "o-", color=RED, markersize=5, linewidth=1, label=f"{words} accuracy (right)")
        right.set_ylim(0, 102)
        right.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        right.tick_params(axis="y", colors=RED)
        legend(axes, right)
    else:
        measured = np.isfinite(looked)
        if measured.any():
            axes.plot(seconds[measured], looked[measured], "o-", color=RED, markersize=5, linewidth=1, label=f"{words} loss")
        legend(axes)
    finite = np.flatnonzero(np.isfinite(loss))
    if finite.size == 0:
        axes.set_title("The loss was never finite" if len(loss) else "No clock ended in the time given")
    elif finite[-1] < len(loss) - 1:
        axes.set_title(f"The loss diverged: not finite after clock {metrics[int(finite[-1])]['clock']}")
    elif finite.size == 1:
        axes.set_title(f"Loss {loss[finite[0]]:.3g} after {_seconds(summary['seconds'])}")
    else:
        last = summary.get("final_loss")
        last = loss[-1] if last is None or not math.isfinite(last) else last
        axes.set_title(f"Loss {loss[finite[0]]:.3g} → {last:.3g} in {_seconds(summary['seconds'])}")


def _loss_over_samples(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training loss over samples: what a sample taught, whatever it cost."""
    samples, loss, clocks = (column(metrics, key) for key in ("samples", "loss", "clock"))
    axes.set_xlabel("samples")
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    _loss_lines(axes, samples, loss, clocks)
    legend(axes)
    smooth = smoothed(loss, clocks)
    reached = np.flatnonzero(smooth <= smooth[np.isfinite(smooth)][0] / 2) if np.isfinite(smooth).any() else np.empty(0, int)
    n = f"{samples[-1] if len(samples) else 0:,.0f}"
    if len(loss) < 2 or not np.isfinite(smooth).any():
        axes.set_title(f"{n} samples were seen")
    elif reached.size:
        axes.plot(samples[reached[0]], smooth[reached[0]], "o", color=BLUE, markersize=7, markerfacecolor="white", markeredgewidth=1.8)
        axes.set_title(f"The loss halved within {samples[reached[0]]:,.0f} of {n} samples")
    else:
        axes.set_title(f"The loss did not halve within {n} samples")


def _loss_lines(axes: Axes, x: Array, loss: Array, clocks: Array) -> None:
    finite = np.isfinite(loss)
    axes.set_ylabel("training loss")
    if not finite.any():
        axes.text(0.5, 0.5, "no finite loss", transform=axes.transAxes, ha="center", va="center", color=QUIET, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    if finite.sum() < 20:
        axes.plot(x, loss, "o-", color=BLUE, linewidth=1.8, markersize=4.5, label="training loss")
    else:
        axes.plot(x, loss, color=SKY, linewidth=0.7, alpha=0.6, label="training loss, each clock")
        axes.plot(x, smoothed(loss, clocks), color=BLUE, linewidth=2, label="training loss, smoothed")
    if loss[finite].min() > 0 and loss[finite].max() > 20 * loss[finite].min():
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if loss[finite].max() < 2000 * loss[finite].min() else (1.0,)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")


def _rank_time(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Draw a bar a rank: busy, waiting, communicating, and what is left of the run; thin and sparsely labelled where ranks are many."""
    parts = np.array([[value or 0.0 for value in summary[key]] for key in ("compute_seconds", "wait_seconds", "comm_seconds")], dtype=float)
    n = parts.shape[1]
    own = max(summary.get("rank_seconds") or [summary["seconds"] or 0.0])  # of a run that goes on in another layout, the ranks know this part
    whole = np.maximum(parts.sum(axis=0), own)
    share = 100 * parts / np.where(whole > 0, whole, 1)
    left = np.zeros(n)
    thick = n <= _N_LABELLED_RANKS
    for row, colour, name in zip([*share, 100 - share.sum(axis=0)], (GREEN, ORANGE, BLUE, FAINT), ("busy", "waiting", "communicating", "other"), strict=True):
        if n <= MOST_BARS:
            axes.barh(range(n), row, left=left, height=0.72 if thick else 1.0, color=colour, label=name)
        else:  # one area in place of a bar a rank
            axes.fill_betweenx(np.arange(n), left, left + row, color=colour, label=name, linewidth=0)
        for rank in range(n if thick and colour != FAINT else 0):
            if row[rank] >= 8:
                ink = INK if colour == ORANGE else "white"
                axes.text(left[rank] + row[rank] / 2, rank, f"{row[rank]:.0f}%", ha="center", va="center", color=ink, fontsize=8)
        left = left + row
    axes.set_xlim(0, 100)
    axes.set_ylim(n - 0.5, -0.5) if n > 2 else axes.set_ylim(n - 0.5 + (3 - n) / 2, -0.5 - (3 - n) / 2)
    step = 1 if thick else -(-n // 12)
    gap = "\n" if n <= 8 else ": "
    first = len(summary["roles"]) - n  # of a simulation, servers apart have no bars
    named = [(first + rank, summary["roles"][first + rank]) for rank in range(0, n, step)]
    labels = [f"rank {rank}" + (gap + _role_names(roles) if thick and roles else "") for rank, roles in named]
    axes.set_yticks(range(0, n, step), labels, fontsize=8 if n > 4 else 9)
    axes.tick_params(axis="y", length=0 if thick else 3, labelcolor=INK)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axes.set_xlabel("share of the run's time")
    legend(axes)
    waiting = 100 * parts[1].sum() / whole.sum() if whole.sum() > 0 else 0.0
    most = summary.get("most_waited_for")
    straggler = f", {most['share']:.0%} of it for rank {most['rank']}" if most and most["is_straggler"] else ""
    axes.set_title(f"{waiting:.0f}% of rank time was waiting{straggler}")


def _staleness(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Draw how many reads had which staleness, and the bound of the policy where it has one."""
    counts = {int(key): int(count) for key, count in summary["staleness_histogram"].items()}
    bound, total = summary.get("staleness_bound"), sum(counts.values())
    axes.set_xlabel("staleness of a read (clocks)")
    axes.set_ylabel("reads")
    if total == 0:
        axes.text(0.5, 0.5, "no reads were counted", transform=axes.transAxes, ha="center", va="center", color=QUIET, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title("No reads were counted")
        return
    from matplotlib.ticker import FixedLocator, MaxNLocator

    values = sorted(counts)
    bars = axes.bar(values, [counts[value] for value in values], width=0.8, color=BLUE)
    last = max(values[-1], bound or 0)
    if len(values) <= 12 and last <= 20:
        axes.bar_label(bars, [f"{counts[value] / total:.1%}" if counts[value] else "" for value in values], padding=2, fontsize=8, color=INK)
    axes.set_xlim(min(values[0], 0) - (1.2 if last < 3 else 0.7), last + (1.2 if last < 3 else 0.9))
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(FixedLocator(range(last + 1)) if last <= 12 else MaxNLocator(12, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: count(value))
    axes.grid(False, axis="x")
    if bound is not None:
        axes.axvline(bound + 0.5, color=RED, linewidth=1.6, linestyle="--", label=f"bound of the policy: {bound}")
        legend(axes)
    mean = sum(value * count for value, count in counts.items()) / total
    limit = "no bound" if bound is None else f"bound {bound}"
    if values[-1] == 0:
        axes.set_title(f"Every read was fresh ({limit})")
    else:
        axes.set_title(f"Staleness {mean:.2g} on average, {values[-1]} at most ({limit})")


def _role_names(roles: Sequence[str]) -> str:
    """Name roles briefly: "server 0, server 1, worker 0" is "servers 0-1, worker 0"."""
    numbers: dict[str, list[str]] = {}
    for role in roles:
        kind, _, number = role.partition(" ")
        numbers.setdefault(kind, []).append(number)
    words = [f"{kind} {of[0]}".strip() if len(of) == 1 else f"{kind}s {of[0]}-{of[-1]}" for kind, of in numbers.items()]
    text = ", ".join(words)
    return text if len(text) <= 26 else text[:25] + "…"


def legend(axes: Axes, *others: Axes) -> None:
    """Put the legend of a panel below it, where nothing is drawn."""
    handles: list[Any] = [handle for each in (axes, *others) for handle in each.get_legend_handles_labels()[0]]
    if handles:
        labels = [handle.get_label() for handle in handles]
        wide = 4 if sum(map(len, labels)) <= 80 else 2
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=wide, handlelength=1.6, columnspacing=1.6)


def column(metrics: Sequence[Mapping[str, Any]], key: str) -> Array:
    return np.array([math.nan if row.get(key) is None else row[key] for row in metrics], dtype=float)


def smoothed(values: Array, clocks: Array) -> Array:
    """Return the mean of the finite values in a centred window of 5% of the clocks; NaN where the value is.

    A row counts for as many clocks as it sums up, those from the row before to its own of `clocks`: of a run that has gone on they are not alike.
    """
    finite, spans = np.isfinite(values), np.diff(clocks, prepend=-1.0)
    half = (clocks[-1] + 1) // 40 if clocks.size else 0
    sums, counts = np.cumsum([0.0, *np.where(finite, values * spans, 0)]), np.cumsum([0.0, *(finite * spans)])
    lo, hi = np.searchsorted(clocks, clocks - half), np.searchsorted(clocks, clocks + half, "right")
    return np.where(finite, (sums[hi] - sums[lo]) / np.maximum(counts[hi] - counts[lo], 1), math.nan)


def _seconds(seconds: float) -> str:
    if seconds >= 120:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def nbytes(nbytes: float) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {name}"
    return f"{nbytes:g} B"
