"""Lay one segment a rank into memory that the ranks of a host share, and count there how far each rank is.

    window    [ segment of rank 0 | segment of rank 1 | ... ]          each as long as the others, on lines of its own
    counters  [ line of rank 0    | line of rank 1    | ... ]          one writer a line, so no atomic operations
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LINE_NBYTES = 64
N_COUNTERS = 8
LINES_AT_ONCE = 64


class Segments:
    """Segments and counters of the ranks of `comm`, all of one host. All methods are collective, called in the same order."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.regions: list[tuple[Array, int, int]] = []  # window, bytes from one rank's segment to the next, bytes of a segment
        self.lines: list[list[memoryview]] = []

    def allocate(self, n: int, dtype: Any) -> Array:
        """Return n zeros, the segment of this rank."""
        nbytes = n * np.dtype(dtype).itemsize
        stride = -(-max(nbytes, 1) // LINE_NBYTES) * LINE_NBYTES
        window = self.comm.shared(self.comm.size * stride, np.uint8)
        self.regions.append((window, stride, nbytes))
        segment: Array = window[self.comm.rank * stride :][:nbytes].view(dtype)
        return segment

    def views(self, buffer: Array) -> list[Array]:
        """Return the range that `buffer` is of this rank's segment as every rank has it; none where it is in no segment."""
        start = buffer.__array_interface__["data"][0]
        for window, stride, nbytes in self.regions:
            at = start - window.__array_interface__["data"][0] - self.comm.rank * stride
            if at >= 0 and at + buffer.nbytes <= nbytes:
                return [window[r * stride + at :][: buffer.nbytes].view(buffer.dtype) for r in range(self.comm.size)]
        return []

    def counters(self) -> list[memoryview]:
        """Return a line of 8 counters (int64, zero) of each rank, that nobody else has; rank r alone writes to the r-th."""
        if not self.lines:
            size = self.comm.size
            memory = self.comm.shared(size * LINES_AT_ONCE * N_COUNTERS, np.int64).reshape(LINES_AT_ONCE, size, N_COUNTERS)
            self.lines = [[memoryview(memory[i, r]) for r in range(size)] for i in reversed(range(LINES_AT_ONCE))]
        return self.lines.pop()
