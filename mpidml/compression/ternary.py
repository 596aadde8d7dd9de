"""Send -1, 0 or 1 times the largest magnitude of a block, at random so that the mean is right (Wen et al., NeurIPS 2017, by blocks).

The variance is the sum of |x| (largest - |x|): for values much smaller than the largest of their block most of what arrives is noise. Blocks whose largest magnitude is
below 1.6e-36 (float64: 1e-305) are sent as 0.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, fields, packed, positive
from mpidml.core.flat import Array


class Ternary(Codec):
    """Round to one of three values; a code is a unit for each `block` values (a multiple of 512), then 2 bits a value. No residual."""

    has_residual = False
    unbiased = True

    def __init__(self, block: int = 1024) -> None:
        self.block = positive("block", block, 512)

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 4 ceil(n / 16) + itemsize ceil(n / block)."""
        n = prod(shape)
        return packed(n, 2) + itemsize * -(-n // self.block)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Round at random, by `noise` and index."""
        units, codes = self._fields(code, x)
        return bool(backend.stochastic_encode(x.reshape(-1), noise, self.block, 2, False, units, codes))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add code x unit."""
        units, codes = self._fields(code, out)
        backend.codes_decode_add(codes, units, self.block, 2, out.reshape(-1))

    def _fields(self, code: Array, x: Array) -> list[Array]:
        return fields(code, (x.dtype, -(-x.size // self.block)), (np.uint8, -(-x.size // 4)))
