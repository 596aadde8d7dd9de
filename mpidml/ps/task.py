"""Define a worker's program: what it reads, what it computes of that, what it pushes. The worker role does the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from mpidml.core.role import Array, Lease


class Read(NamedTuple):
    """One read of a step: which table, which rows (None: all), into which array (None: read in place)."""

    table: int
    out: Array | None
    rows: Array | None = None


class Push(NamedTuple):
    """One write of a step: which table, the delta, which rows (None: all)."""

    table: int
    delta: Lease
    rows: Array | None = None


class Turn(NamedTuple):
    """What a worker computes: its `step`-th compute, on which block of samples, as part of which clock, with which weight.

    `versions` are the clocks that its reads show, `staleness` how many clocks (executions, under adaptive) they are behind.
    """

    step: int
    clock: int
    block: int
    weight: float = 1.0
    versions: tuple[int, ...] = ()
    staleness: int = 0


class Task(Protocol):
    """What a worker does with its reads."""

    def reads(self, step: int) -> Sequence[Read]:
        """Name what is read for `step`; the arrays of step c + 1 are filled while step c computes."""

    def last_reads(self, step: int) -> Sequence[Read]:
        """Name what `finish` reads, in place of what would be read for `step`."""

    def compute(self, turn: Turn, report: Callable[[int, int], None]) -> tuple[Sequence[Push], tuple[float, ...]]:
        """Return the pushes of this turn and what was measured; `report(lo, hi)`: elements [lo, hi) of the early delta are final."""

    def early(self) -> Lease | None:
        """Name the delta (of table 0, all rows) that is pushed part by part while it is computed; None: no such delta now."""

    def finish(self, turn: Turn, report: Callable[[int, int], None]) -> Any:
        """Use the final values."""
