"""Lend memory instead of copying it: a buffer is handed out as leases and is free again when every reader has ended its lease.

allocate -> fill -> lease ... lend() per reader ... back() per reader -> free, and the pool gives it out again
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml.core.role import Array, Lease

LEAST_NBYTES = 256


class Buffer:
    """A piece of private memory. `held`: allocated and not lent yet; `keep`: its owner reuses it by itself once it is not busy."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory
        self.held = self.keep = False
        self.n_lent = self.n_back = 0

    def array(self, dtype: Any, n: int | None = None) -> Array:
        """Return its first n elements (default: all that fit) as a 1-D array of `dtype`."""
        whole: Array = self.memory[: self.memory.size // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize].view(dtype)
        return whole[:n]

    def lease(self, array: Array) -> Lease:
        """Return a lease of `array`, a contiguous view of this buffer."""
        return Lease(array, None, self, array.__array_interface__["data"][0] - self.memory.__array_interface__["data"][0])

    def lend(self) -> None:
        """Count one more reader."""
        self.held = False
        self.n_lent += 1

    def back(self) -> None:
        """Count one reader of this process that has ended."""
        self.n_back += 1

    def busy(self) -> bool:
        """Whether some reader has not ended yet."""
        return self.n_lent != self.n_back


class Buffers:
    """A pool of buffers in sizes of powers of two; `allocate` reuses what is free. Steady state allocates nothing."""

    def __init__(self) -> None:
        self.given: dict[int, list[Buffer]] = {}

    def make(self, nbytes: int) -> Buffer:
        """Create one buffer of `nbytes`."""
        return Buffer(np.empty(nbytes, np.uint8))

    def allocate(self, nbytes: int, keep: bool = False) -> Buffer:
        """Return a buffer of at least `nbytes` that nobody reads."""
        size = max(LEAST_NBYTES, 1 << (nbytes - 1).bit_length()) if nbytes > 0 else LEAST_NBYTES
        given = self.given.setdefault(size, [])
        for buffer in given:
            if not (buffer.keep or buffer.held or buffer.busy()):
                break
        else:
            buffer = self.make(size)
            given.append(buffer)
        buffer.held, buffer.keep = True, keep
        return buffer
