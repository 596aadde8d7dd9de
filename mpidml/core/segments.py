"""Lay one segment a rank into memory that the ranks of a host share, and count there how far each rank is.

    window    [ segment of rank 0 | segment of rank 1 | ... ]          each as long as the others, on lines of its own
    counters  [ line of rank 0    | line of rank 1    | ... ]          one writer a line, so no atomic operations
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LINE_NBYTES = 64
N_COUNTERS = 8
LINES_AT_ONCE, ROOM_NBYTES = 64, 1 << 18
BLOCK_NBYTES = 1 << 17
"""What is summed at a time stays in the cache until it is written back."""


class Segments:
    """Segments and counters of the ranks of `comm`, all of one host. All methods are collective, called in the same order."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.regions: list[tuple[Array, int, int]] = []  # window, bytes from one rank's segment to the next, bytes of a segment
        self.lines: list[list[memoryview]] = []
        self.free: Array = np.empty(0, np.uint8)  # of the last window for small things

    def allocate(self, n: int, dtype: Any) -> Array:
        """Return n zeros, the segment of this rank."""
        nbytes = n * np.dtype(dtype).itemsize
        stride = -(-max(nbytes, 1) // LINE_NBYTES) * LINE_NBYTES
        window = self.comm.shared(self.comm.size * stride, np.uint8)
        self.regions.append((window, stride, nbytes))
        segment: Array = window[self.comm.rank * stride :][:nbytes].view(dtype)
        return segment

    def room(self, n: int, dtype: Any) -> Array:
        """Return n elements of this rank's segment of a window that many small things share, as MPI has some thousand windows at most."""
        nbytes = n * np.dtype(dtype).itemsize
        if self.free.size < nbytes:
            self.free = self.allocate(max(ROOM_NBYTES, nbytes), np.uint8)
        found: Array = self.free[:nbytes].view(dtype)
        self.free = self.free[-(-nbytes // LINE_NBYTES) * LINE_NBYTES :]
        return found

    def adopt(self, buffer: Array) -> tuple[list[Array], bool]:
        """Return what every rank has in place of `buffer`, seen by all, and whether that is the buffer itself.

        It is where every rank gives the same range of the same segment; else each is given a new segment, to copy to and fro.
        """
        place = self._place(buffer)
        found = self.comm.allgather(place)
        in_place = place is not None and all(other == place for other in found)
        if not in_place:
            place = self._place(self.allocate(buffer.size, buffer.dtype))
        assert place is not None
        region, at = place
        window, stride, _ = self.regions[region]
        return [window[r * stride + at :][: buffer.nbytes].view(buffer.dtype) for r in range(self.comm.size)], in_place

    def _place(self, buffer: Array) -> tuple[int, int] | None:
        """Return which region a buffer lies in, and how many bytes from the begin of this rank's segment; None for one that lies in none."""
        start = buffer.__array_interface__["data"][0]
        for region, (window, stride, nbytes) in enumerate(self.regions):
            at = start - window.__array_interface__["data"][0] - self.comm.rank * stride
            if at >= 0 and at + buffer.nbytes <= nbytes:
                return region, at
        return None

    def counters(self) -> Counters:
        """Return 8 counters (zero) of each rank, that nobody else has."""
        if not self.lines:
            size = self.comm.size
            memory = self.comm.shared(size * LINES_AT_ONCE * N_COUNTERS, np.int64).reshape(LINES_AT_ONCE, size, N_COUNTERS)
            self.lines = [[memoryview(memory[i, r]) for r in range(size)] for i in reversed(range(LINES_AT_ONCE))]
        return Counters(self.comm, self.lines.pop())


class Counters:
    """Say how often this rank has come to a place, and see how often the others have."""

    def __init__(self, comm: Any, lines: Sequence[memoryview]) -> None:
        self.comm, self.lines, self.own, self.fence = comm, lines, lines[comm.rank], comm.fence

    def go_on(self) -> None:
        """Let MPI move messages: who waits here does nothing else, and another rank may wait for one of this rank's."""
        self.comm.mpi.Iprobe()

    def reach(self, place: int, times: int) -> None:
        """Tell that this rank has come to `place` for the `times`-th time; what it wrote before is seen by who sees that."""
        self.fence()
        self.own[place] = times

    def all_reached(self, place: int, times: int) -> bool:
        """Tell whether all have."""
        for line in self.lines:
            if line[place] < times:
                return False
        self.fence()
        return True

    def has_reached(self, rank: int, place: int, times: int) -> bool:
        """Tell whether one has."""
        if self.lines[rank][place] < times:
            return False
        self.fence()
        return True

    def late(self, place: int, times: int) -> list[int]:
        """Return those who have not."""
        return [rank for rank, line in enumerate(self.lines) if line[place] < times]


def blocks(views: Sequence[Array], lo: int, hi: int) -> list[list[Array]]:
    """Cut elements [lo, hi) of all views into blocks that the cache holds."""
    step = max(1, BLOCK_NBYTES // views[0].itemsize)
    return [[view[at : min(hi, at + step)] for view in views] for at in range(lo, hi, step)]


def sum_up(blocks: Sequence[Sequence[Array]], spreads: bool) -> None:
    """Leave in the first view of each block the sum of all, added in their order; with `spreads` in the others, too."""
    for first, *others in blocks:
        for other in others:
            np.add(first, other, out=first)
        for other in others if spreads else ():
            np.copyto(other, first)
