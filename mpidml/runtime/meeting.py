"""Let all ranks of one host come together without a message: each counts in shared memory how often it has come, and the last one rings who sleeps.

    rank 0   came 3 times |...... asleep ......| goes on        who comes last finds all others there, rings them and goes on; a barrier of MPI takes
    rank 1   came 3 times ---------------------> rings, goes on  rounds of messages, in each of which everybody has to be awake

Of two that come last at once at least one finds all there, since each looks after its own count is seen. Who finds somebody missing rings nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LINE_NBYTES = 64


class Meeting:
    """A place where the ranks of `comm` meet over and over, all on one host (Collective on comm). `ring(host_rank)` wakes one; `host_rank` is this rank's there."""

    def __init__(self, comm: Any, host_rank: int, ring: Callable[[int], None], fence: Callable[[], None]) -> None:
        members: Sequence[int] = comm.allgather(host_rank)
        self.others = [(number, rank) for number, rank in enumerate(members) if rank != host_rank]
        self.me, self.ring, self.fence = comm.rank, ring, fence
        self.came = memoryview(comm.shared(comm.size * LINE_NBYTES // 8, np.int64))[:: LINE_NBYTES // 8]
        self.times = 0

    def come(self) -> None:
        """Be there once more; what this rank wrote before is there for whoever finds `all_here`."""
        self.times += 1
        self.fence()
        self.came[self.me] = self.times
        self.fence()
        if self.all_here():
            for _, rank in self.others:
                self.ring(rank)

    def late(self) -> list[int]:
        """Return the numbers of those that have not come as often as this rank."""
        return [number for number, _ in self.others if self.came[number] < self.times]

    def all_here(self) -> bool:
        """Tell whether everybody has come as often as this rank."""
        return not self.late()
