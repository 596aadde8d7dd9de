"""Sum in memory that the ranks of a host share: each rank sums up one slice of all buffers, and writes it back to all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml.collectives.base import Collective, Halves, Sum, check_alike
from mpidml.core.errors import UserError
from mpidml.core.rounds import Array, cut
from mpidml.core.segments import Segments

BLOCK_NBYTES = 1 << 17
"""What is summed at a time stays in the cache until it is written back."""
ARRIVED, SUMMED = 0, 1


class Shared(Collective):
    """Two waits, and no message: the ranks of one host only. Per rank the buffer is read once and written once, whatever P is.

    Buffers from `allocate` are summed where they are; others are copied to and fro.
    """

    def open(self, comm: Any) -> None:
        """Take the communicator of one host; UserError where there are several."""
        if not comm.one_host:
            raise UserError("collective shared: the ranks live on several hosts, which share no memory; use hierarchical")
        super().open(comm)
        self.segments = Segments(comm)

    def allocate(self, n: int, dtype: Any) -> Array:
        """Return n zeros in this rank's segment of a shared window."""
        return self.segments.allocate(n, dtype)

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`."""
        check_alike(self.comm, buffer)
        return SharedSum(self.comm, self.segments, buffer)

    def weights(self, n: int, dtype: Any) -> Array:
        """Return n zeros, one array for all ranks."""
        whole: Array = self.comm.shared(n, dtype)
        return whole

    def halves(self, gradient: Array, weights: Array) -> Halves:
        """Each rank sums up its slice, and changes it in the weights that all read; the second half is only to wait for all."""
        check_alike(self.comm, gradient)
        reduce = SharedSum(self.comm, self.segments, gradient, spreads=False)
        lo, hi = reduce.slice
        return Halves(reduce, _Everyone(self.comm, self.segments), lo, hi, reduce.views[0][lo:hi], self.comm.size > 1)


class SharedSum(Sum):
    """The sum of one buffer: arrive, and once all have, sum up the own slice; where it `spreads` it is over once all have, and then everywhere."""

    def __init__(self, comm: Any, segments: Segments, buffer: Array, spreads: bool = True) -> None:
        self.comm, self.buffer, self.spreads = comm, buffer, spreads
        views = segments.views(buffer)
        # All ranks must agree on it: one that has copied would be summed elsewhere.
        in_place = all(comm.allgather(bool(views)))
        self.own = buffer if in_place else segments.allocate(buffer.size, buffer.dtype)
        self.views = views if in_place else segments.views(self.own)
        self.counters = segments.counters()
        self.slice = cut(buffer.size, comm.size, comm.rank)
        self.blocks = [[view[lo:hi] for view in self.views] for lo, hi in blocks(*self.slice, buffer.itemsize)]
        self.n_started = 0
        self.phase = SUMMED + 1

    def start(self) -> None:
        """Tell the others that this rank's buffer is complete."""
        if self.phase <= SUMMED:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        if self.own is not self.buffer:
            self.own[:] = self.buffer
        self.n_started += 1
        self.phase = ARRIVED
        self._tell(ARRIVED)

    def test(self) -> bool:
        """Sum up once all have arrived."""
        if self.phase == ARRIVED and self._all(ARRIVED):
            for first, *others in self.blocks:
                for other in others:
                    np.add(first, other, out=first)
                for other in others if self.spreads else ():
                    np.copyto(other, first)
            self.phase = SUMMED if self.spreads else SUMMED + 1
            self._tell(SUMMED)
        if self.phase == SUMMED and self._all(SUMMED):
            if self.own is not self.buffer:
                self.buffer[:] = self.own
            self.phase = SUMMED + 1
        return self.phase > SUMMED

    def _tell(self, what: int) -> None:
        self.comm.fence()
        self.counters[self.comm.rank][what] = self.n_started

    def _all(self, what: int) -> bool:
        for line in self.counters:
            if line[what] < self.n_started:
                return False
        self.comm.fence()
        return True

    def late(self) -> list[int]:
        """Return the ranks that have not arrived, or not summed."""
        return [rank for rank, line in enumerate(self.counters) if self.phase <= SUMMED and line[self.phase] < self.n_started]


class _Everyone(Sum):
    """Wait until all ranks have come here."""

    def __init__(self, comm: Any, segments: Segments) -> None:
        self.comm, self.counters, self.n_started = comm, segments.counters(), 0

    def start(self) -> None:
        """Say that this rank is here."""
        self.n_started += 1
        self.comm.fence()
        self.counters[self.comm.rank][0] = self.n_started

    def test(self) -> bool:
        """Look whether all are."""
        if self.late():
            return False
        self.comm.fence()
        return True

    def late(self) -> list[int]:
        """Return the ranks that are not."""
        return [rank for rank, line in enumerate(self.counters) if line[0] < self.n_started]


def blocks(lo: int, hi: int, itemsize: int) -> list[tuple[int, int]]:
    """Cut [lo, hi) into blocks."""
    step = max(1, BLOCK_NBYTES // itemsize)
    return [(at, min(hi, at + step)) for at in range(lo, hi, step)]
