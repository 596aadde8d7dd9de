"""Share buffers between the ranks of a host: the sender leaves a payload where it is, the reader looks at it there.

    arena of a rank   [ cells | data ........ ][ cells | data .. ] ...      cells: one count per rank of the host

The owner counts the leases it hands out; each reader counts those it has ended in its own cell of the buffer. A buffer is free when
the sums agree: one writer a cell, so no atomic operations. `fence` orders a reader's last look before its count on machines that
reorder stores (x86 does not).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from mpidml.core.buffers import Buffer, Buffers
from mpidml.core.role import Array, Lease
from mpidml.runtime.comm import STRONG_ORDER, CountedComm

LINE_NBYTES = 64


class WindowBuffer(Buffer):
    """A buffer in this rank's arena, `base` bytes from its start; `cells` count what the readers of the host have ended."""

    def __init__(self, memory: Array, base: int, cells: memoryview) -> None:
        super().__init__(memory)
        self.base, self.cells = base, cells

    def busy(self) -> bool:
        return self.n_lent != self.n_back + sum(self.cells)


class WindowBuffers(Buffers):
    """A pool in a window of `host` with `nbytes` for this rank; what does not fit is private and travels by MPI (Collective on host)."""

    def __init__(self, host: Any, nbytes: int) -> None:
        super().__init__()
        self.rank, self.size = host.rank, host.size
        self.cells_nbytes = -(-8 * self.size // LINE_NBYTES) * LINE_NBYTES
        self.host, self.window = host, host.window(nbytes + LINE_NBYTES)
        memories: list[Any] = [self.window.Shared_query(r)[0] for r in range(self.size)]
        self.arenas: list[Any] = [np.frombuffer(memory, np.uint8) for memory in memories]
        # The last line of each arena holds the rank's "I sleep" flag.
        self.asleep = [memoryview(arena[-LINE_NBYTES:]).cast("B").cast("q") for arena in self.arenas]
        self.arenas[self.rank][-LINE_NBYTES:] = 0
        self.used, self.limit = 0, nbytes
        self.window.Lock_all(MPI.MODE_NOCHECK)
        self.fence: Callable[[], None] = self.window.Sync
        self.ends: dict[tuple[int, int], Callable[[], None]] = {}
        self.views: dict[tuple[int, int, int], Array] = {}
        host.Barrier()

    def make(self, nbytes: int) -> Buffer:
        start = self.used
        if start + self.cells_nbytes + nbytes > self.limit:
            return super().make(nbytes)
        self.used += self.cells_nbytes + -(-nbytes // LINE_NBYTES) * LINE_NBYTES
        arena = self.arenas[self.rank]
        arena[start : start + self.cells_nbytes] = 0
        cells = memoryview(arena[start : start + 8 * self.size]).cast("B").cast("q")
        data = start + self.cells_nbytes
        return WindowBuffer(arena[data : data + nbytes], start, cells)

    def remote(self, rank: int, base: int, offset: int, nbytes: int) -> Lease:
        """Return a lease of another rank's buffer: `nbytes` at `offset` in the buffer at `base` of the arena of host rank `rank`."""
        end = self.ends.get((rank, base))
        if end is None:
            me, fence = self.rank, None if STRONG_ORDER else self.fence
            cells = memoryview(self.arenas[rank][base : base + 8 * self.size]).cast("B").cast("q")

            def end() -> None:
                if fence is not None:
                    fence()
                cells[me] += 1

            self.ends[rank, base] = end
        key = (rank, base + offset, nbytes)
        view = self.views.get(key)
        if view is None:
            start = base + self.cells_nbytes + offset
            view = self.views[key] = self.arenas[rank][start : start + nbytes]
        return Lease(view, end)

    def free(self) -> None:
        """Free the window; no lease may be open (Collective on host)."""
        self.host.free_window(self.window)


def make_window(comm: CountedComm, n_buffers: int, nbytes: int) -> WindowBuffers | None:
    """Return a pool with room for so many buffers of `nbytes` on each rank of the host; None for one rank, or where they do not fit (Collective on comm).

    Sizes are rounded up to powers of two; pages that are never touched take no memory.
    """
    if comm.size == 1 or not comm.fits(comm.host.size * n_buffers * nbytes + (1 << 22)):
        return None
    return WindowBuffers(comm.host, n_buffers * 2 * nbytes + (1 << 20))
