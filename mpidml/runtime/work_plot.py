"""Draw what a simulation of sizes knows in place of a loss: the samples done and the staleness of the reads, over virtual seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]


def nothing_learnt(summaries: Sequence[Row]) -> bool:
    """Tell whether all runs are simulations of sizes alone."""
    return all(each.get("simulated") and each.get("final_loss") is None for each in summaries)


def work(axes: Axes, summaries: Sequence[Row], curves: Sequence[Sequence[Row]], looks: Sequence[Mapping[str, Any]]) -> None:
    """Draw samples over virtual seconds for each run; the title names the one that does most a second."""
    _lines(axes, curves, looks, "samples")
    axes.set_ylabel("samples")
    axes.yaxis.set_major_formatter(lambda value, _: count(value))
    best = max(summaries, key=lambda each: each["samples_per_second"] or 0.0)
    which = f"{str(best['variant'])[:24]}: " if len(summaries) > 1 else ""
    axes.set_title(f"{which}{count(best['samples_per_second'] or 0.0)} samples a second, simulated")


def staleness(axes: Axes, curves: Sequence[Sequence[Row]], looks: Sequence[Mapping[str, Any]]) -> None:
    """Draw the mean staleness of the reads over virtual seconds."""
    _lines(axes, curves, looks, "staleness")
    axes.set_ylabel("staleness of reads, mean (clocks)")
    axes.set_ylim(bottom=0)
    last = max((rows[-1]["staleness"] for rows in curves if rows), default=0.0)
    axes.set_title("Every read was fresh" if last == 0 else f"Staleness ends at {last:.2g} on average" + " at most" * (len(curves) > 1))


def _lines(axes: Axes, curves: Sequence[Sequence[Row]], looks: Sequence[Mapping[str, Any]], key: str) -> None:
    for rows, look in zip(curves, looks, strict=True):
        at, values = [0.0] * (key == "samples"), [0.0] * (key == "samples")
        at += [row["seconds"] for row in rows]
        values += [row[key] for row in rows]
        axes.plot(at, values, **look, markevery=max(1, len(at) // 8))
    ends = sorted(rows[-1]["seconds"] for rows in curves if rows)
    if len(ends) > 1 and ends[-1] > 4 * ends[-2]:
        axes.set_xlim(0, 1.1 * ends[-2])  # one process alone would press all others into a corner
    axes.set_xlabel("virtual seconds")


def count(number: float) -> str:
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:g}"
