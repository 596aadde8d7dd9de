"""Carry arrays of one stage to the next inside a host: both ranks have the slots in their memory, and count there what was sent and what is free again.

    stage s, rank 0    [slot 0][slot 1]   sent:  3 2    is written to by rank 0, who rings   ->   here, if more than it took    stage s + 1, rank 1
                                          freed: 2 2    is written to by rank 1, who rings   ->   free, if as many as it sent

No message travels, and no request is made. Who waits calls MPI all the same: other messages, to other hosts or of sums over replicas, go on only while somebody does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml.core.role import Array
from mpidml.runtime.meeting import LINE_NBYTES

IN_A_LINE = LINE_NBYTES // 8
"""Counts in a cache line, which one rank alone should write to."""


def n_counts(n_slots: int) -> int:
    """Return how many int64 the counts of a channel take: two sides, each in cache lines of its own."""
    return 2 * -(-n_slots // IN_A_LINE) * IN_A_LINE


class ChannelHere:
    """One side of a line between ranks of a host; `slots` (n_slots, m, width) and `counts` (int64, zeros at first) lie in memory of both.

    The source: `claim` an item's slot before writing to it, `send`. The target: `expect` items in order, `take` one, `release` it.
    """

    def __init__(self, comm: Any, line: Any, slots: Array, counts: Array, waiting: Any) -> None:
        self.comm, self.line, self.slots, self.waiting = comm, line, slots, waiting
        self.sends = comm.rank == line.source
        self.other = comm.host_rank_of[line.target if self.sends else line.source]
        half = counts.size // 2
        told: Any = counts  # by these a count is read in a third of the time that it takes by an array
        self.sent, self.freed = memoryview(told[:half]), memoryview(told[half:])
        self.n = [0] * line.n_slots  # of each slot: what this side has sent, or taken

    def claim(self, item: int) -> None:
        """Wait until nobody needs what the slot of `item` held before."""
        n = self.line.n_slots * self.line.every
        self._until_free(self.line.slot(item), lambda: f"rank {self.line.target} to be done with {self.line.name} of microbatch {item - n}")
        self.comm.fence()

    def send(self, item: int, rows: int) -> int:
        """Say that the slot's rows are there; return the bytes that travel, none."""
        slot = self.line.slot(item)
        self.n[slot] += 1
        self._tell(self.sent, slot)
        return 0

    def expect(self, item: int) -> None:
        """Be ready for an item whose slot nobody needs any more: nothing to do."""

    def take(self, item: int) -> float:
        """Wait until an item is here; return the seconds."""
        slot = self.line.slot(item)
        waited = self._until(lambda: self.sent[slot] > self.n[slot], lambda: f"{self.line.name} of microbatch {item} from rank {self.line.source}")
        self.comm.fence()
        self.n[slot] += 1
        return waited

    def release(self, item: int) -> None:
        """Let the source write to the slot again."""
        self._tell(self.freed, self.line.slot(item))

    def free(self) -> None:
        """Wait until the other side is done with all that was sent, and let go of the bell."""
        for slot in range(self.line.n_slots if self.sends else 0):
            self._until_free(slot, lambda: f"the last of {self.line.name}")
        self.waiting.close()

    def _tell(self, counts: memoryview[int], slot: int) -> None:
        self.comm.fence()
        counts[slot] = self.n[slot]
        self.comm.fence()
        self.waiting.ring(self.other)

    def _until_free(self, slot: int, for_what: Callable[[], str]) -> None:
        if self.freed[slot] < self.n[slot]:
            self._until(lambda: self.freed[slot] >= self.n[slot], for_what)

    def _until(self, ready: Callable[[], bool], for_what: Callable[[], str]) -> float:
        def here() -> bool:
            if ready():
                return True
            self.comm.mpi.Iprobe()
            return ready()

        waited: float = self.waiting.until(here, for_what, rung=True)
        return waited
