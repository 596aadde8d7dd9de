"""Sum in memory that the ranks of a host share: each rank sums up one slice of all buffers, and writes it back to all of them; of small ones each sums up all."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np

from mpidml.collectives.base import Collective, Halves, Sum
from mpidml.core.errors import UserError
from mpidml.core.rounds import Array, cut
from mpidml.core.segments import Segments, blocks, sum_up

ARRIVED, SUMMED = 0, 1
SMALL_NBYTES = 1 << 15
"""Of all ranks together: to read that much takes less than to wait a second time."""


class Shared(Collective):
    """Two waits, and no message: the ranks of one host only. Per rank the buffer is read once and written once, whatever P is. Small ones are
    copied once and read P times, for one wait.

    Buffers from `allocate` are summed where they are, if every rank gives the same part of its own; others are copied to and fro.
    """

    in_memory: ClassVar[bool] = True

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
        self.check(buffer)
        small = self.comm.size > 1 and 0 < buffer.nbytes * self.comm.size <= SMALL_NBYTES
        return (SmallSum if small else SharedSum)(self.comm, self.segments, buffer)

    def weights(self, n: int, dtype: Any) -> Array:
        """Return n zeros, one array for all ranks."""
        whole: Array = self.comm.shared(n, dtype)
        return whole

    def halves(self, gradient: Array, weights: Array) -> Halves:
        """Each rank sums up its slice, and changes it in the weights that all read; the second half is only to wait for all."""
        self.check(gradient)
        reduce = SharedSum(self.comm, self.segments, gradient, spreads=False)
        lo, hi = reduce.slice
        return Halves(reduce, _Everyone(self.segments), lo, hi, reduce.views[0][lo:hi], self.comm.size > 1)


class SharedSum(Sum):
    """The sum of one buffer: arrive, and once all have, sum up the own slice; where it `spreads` it is over once all have, and then everywhere."""

    def __init__(self, comm: Any, segments: Segments, buffer: Array, spreads: bool = True) -> None:
        self.buffer, self.spreads = buffer, spreads
        self.views, self.in_place = segments.adopt(buffer)
        self.own = self.views[comm.rank]
        self.counters = segments.counters()
        self.slice = cut(buffer.size, comm.size, comm.rank)
        self.blocks = blocks(self.views, *self.slice)
        self.n_started = 0
        self.phase = SUMMED + 1

    def start(self) -> None:
        """Tell the others that this rank's buffer is complete."""
        if self.phase <= SUMMED:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        if not self.in_place:
            self.own[:] = self.buffer
        self.n_started += 1
        self.phase = ARRIVED
        self.counters.reach(ARRIVED, self.n_started)

    def test(self) -> bool:
        """Sum up once all have arrived."""
        if self.phase == ARRIVED and self.counters.all_reached(ARRIVED, self.n_started):
            sum_up(self.blocks, self.spreads)
            self.phase = SUMMED if self.spreads else SUMMED + 1
            self.counters.reach(SUMMED, self.n_started)
        if self.phase == SUMMED and self.counters.all_reached(SUMMED, self.n_started):
            if not self.in_place:
                self.buffer[:] = self.own
            self.phase = SUMMED + 1
        return self.phase > SUMMED

    def go_on(self) -> None:
        """Call MPI, which a look into memory does not."""
        self.counters.go_on()

    def late(self) -> list[int]:
        """Return the ranks that have not arrived, or not summed."""
        return self.counters.late(self.phase, self.n_started) if self.phase <= SUMMED else []


class SmallSum(Sum):
    """The sum of one small buffer: lay it where all see it, and once all have, add up everybody's, in the order of the ranks.

    Each has two such places in turn: who has come to the second knows that all have come to it, or will, after they have read what lay in the first.
    """

    def __init__(self, comm: Any, segments: Segments, buffer: Array) -> None:
        self.buffer, self.is_under_way, self.n_started = buffer, False, 0
        views, _ = segments.adopt(segments.room(2 * buffer.size, buffer.dtype))
        self.laid = [tuple(view[at : at + buffer.size] for view in views) for at in (0, buffer.size)]
        self.given = memoryview(cast(Any, buffer.view(np.uint8)))  # to copy by these takes a third of what it takes by arrays
        self.own = [memoryview(cast(Any, place[comm.rank].view(np.uint8))) for place in self.laid]
        self.counters = segments.counters()

    def start(self) -> None:
        """Lay the buffer down."""
        if self.is_under_way:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        self.n_started += 1
        self.own[self.n_started & 1][:] = self.given
        self.is_under_way = True
        self.counters.reach(ARRIVED, self.n_started)

    def test(self) -> bool:
        """Add up once all have arrived."""
        if self.is_under_way and self.counters.all_reached(ARRIVED, self.n_started):
            laid, total = self.laid[self.n_started & 1], self.buffer
            np.add(laid[0], laid[1], total)
            for other in laid[2:]:
                np.add(total, other, total)
            self.is_under_way = False
        return not self.is_under_way

    def go_on(self) -> None:
        """Call MPI, which a look into memory does not."""
        self.counters.go_on()

    def late(self) -> list[int]:
        """Return the ranks that have not arrived."""
        return self.counters.late(ARRIVED, self.n_started) if self.is_under_way else []


class _Everyone(Sum):
    """Wait until all ranks have come here."""

    def __init__(self, segments: Segments) -> None:
        self.counters, self.n_started = segments.counters(), 0

    def start(self) -> None:
        """Say that this rank is here."""
        self.n_started += 1
        self.counters.reach(ARRIVED, self.n_started)

    def test(self) -> bool:
        """Look whether all are."""
        return self.counters.all_reached(ARRIVED, self.n_started)

    def go_on(self) -> None:
        """Call MPI, which a look into memory does not."""
        self.counters.go_on()

    def late(self) -> list[int]:
        """Return the ranks that are not."""
        return self.counters.late(ARRIVED, self.n_started)
