"""Send the largest values with their places; the others are sent when they have grown (Aji and Heafield, EMNLP 2017; Stich et al., NeurIPS 2018)."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, fields, share, truth
from mpidml.core.flat import Array

SAMPLE = 16384


class TopK(Codec):
    """Send k = ceil(ratio n) values of n < 2^32, as they are; a code is the values, then their places in 4 bytes each.

    `sampled`: the threshold is read off 16,384 values spread evenly (Lin et al., ICLR 2018), which is several times faster. Then the number sent varies by
    some percent about k, up to k + ceil(k / 4), for which there is always room; what finds none stays in the residual.
    """

    def __init__(self, ratio: float = 0.01, sampled: bool = False) -> None:
        self.ratio, self.sampled = share("ratio", ratio), truth("sampled", sampled)
        self._counts: Array | None = None
        self._sample = np.zeros(0)

    def room(self, n: int) -> int:
        """Return how many values a code has room for."""
        k = ceil(self.ratio * n)
        return min(n, k + -(-k // 4)) if self._samples(n) else k

    def _samples(self, n: int) -> bool:
        return self.sampled and n > SAMPLE

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return (4 + itemsize) k, with k + ceil(k / 4) in place of k where it is sampled (of more than 16,384 values)."""
        return (4 + itemsize) * self.room(prod(shape))

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Find the threshold and move what reaches it; `noise` is not needed."""
        flat, residual = x.reshape(-1), state["residual"]
        values, ids = self._fields(code, x)
        if not x.size:
            return True
        if self._samples(x.size):
            threshold, n_equal = self._sampled_threshold(backend, flat, residual), x.size
        else:
            if self._counts is None:
                self._counts = backend.zeros(2048, np.int64)
            threshold = float(backend.kth_magnitude(flat, residual, values.size, self._counts))
            n_equal = int(backend.host(self._counts[:1])[0])
        return bool(backend.select(flat, residual, threshold, n_equal, values, ids) >= 0)

    def _sampled_threshold(self, backend: Any, x: Array, residual: Array) -> float:
        every = x.size // SAMPLE | 1  # odd, so that it steps through all columns of a table whose width is even
        n = -(-x.size // every)
        if self._sample.size < n or self._sample.dtype != x.dtype:
            self._sample = np.empty(n, x.dtype)
        sample = self._sample[:n]
        np.abs(np.add(backend.host(x[::every]), backend.host(residual[::every]), out=sample), out=sample)
        k = max(1, round(self.ratio * n))
        sample.partition(n - k)
        return float(sample[n - k])

    def spoil(self, x: Array, code: Array) -> None:
        """Send NaN to the first place."""
        values, ids = self._fields(code, x)
        values.fill(np.nan)
        ids.fill(0)

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add the values at their places."""
        values, ids = self._fields(code, out)
        backend.scatter_add(values, ids, out.reshape(-1))

    def _fields(self, code: Array, x: Array) -> list[Array]:
        room = self.room(x.size)
        return fields(code, (x.dtype, room), (np.uint32, room))
