"""Tell what was found: a table of the best, what was left out, and all of it as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mpidml.core.sizes import size_words
from mpidml.planner.candidate import Candidate
from mpidml.planner.price import Priced
from mpidml.planner.search import Found

HEADS = ("grid", "schedule", "microbatches", "s/batch", "s/epoch", "samples/s", "sent", "memory", "idle")


def rows(best: Sequence[Priced], batch: int, n_rows: int) -> list[str]:
    """Return the lines of the table; an epoch has `n_rows` samples."""
    clocks = -(-n_rows // batch)
    table = [HEADS]
    for each in best:
        rate = f"{batch / each.seconds:,.0f}" if each.seconds else "-"
        times = (f"{each.seconds:.3g}", f"{each.seconds * clocks:.3g}", rate)
        sizes = (size_words(round(each.nbytes)), size_words(round(each.memory_nbytes)))
        of = each.candidate
        table.append((of.grid + f" mix {of.mix}" * bool(of.mix), schedule_words(of), str(of.microbatches), *times, *sizes, f"{100 * each.idle:.1f}%"))
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADS))]
    sides = [str.ljust] * 2 + [str.rjust] * (len(HEADS) - 2)
    return ["  ".join(side(word, width) for side, word, width in zip(sides, row, widths, strict=True)) for row in table]


def schedule_words(of: Candidate) -> str:
    """Return the schedule, and whether activations are computed again."""
    return (of.schedule or "-") + " recompute" * of.recompute


def left_out(found: Found) -> str:
    """Say how many candidates were left out, and why most of them; "" where none was."""
    if not found.left_out:
        return ""
    memory, others = 0, Counter[str]()
    for _, why in found.left_out:
        memory += why.startswith("needs ")
        others[why] += not why.startswith("needs ")
    commonest, n = max(others.items(), key=lambda each: each[1], default=("", 0))
    words = [f"{memory:,} do not fit in memory"] * (memory > 0) + [f"{sum(others.values()):,} cannot be run, most often: {commonest}"] * (n > 0)
    return f"left out: {'; '.join(words)}"


def plain(of: Candidate) -> dict[str, Any]:
    """Return a candidate as plan.json has it."""
    return {"grid": of.grid, "mix": of.mix or None, "schedule": of.schedule or None, "microbatches": of.microbatches, "recompute": of.recompute, "strategy": of.strategy}


def priced(each: Priced, batch: int) -> dict[str, Any]:
    """Return a candidate and its price as plan.json has it."""
    numbers = {"seconds": each.seconds, "samples_per_second": batch / each.seconds if each.seconds else None, "sent_nbytes": each.nbytes}
    return plain(each.candidate) | numbers | {"memory_nbytes": each.memory_nbytes, "idle": each.idle, "partition": list(each.partition)}


def everything(found: Found, batch: int) -> dict[str, Any]:
    """Return all candidates as plan.json has them, the best first; those that were not timed are slower than the best by what they take at least."""
    timed = [priced(each, batch) for each in (*found.best, *found.others)]
    slower = [plain(of) | {"at_least_seconds": least} for of, least in found.slower]
    return {"candidates": [*timed, *slower], "left_out": [plain(of) | {"why": why} for of, why in found.left_out]}
