"""Send whole multiples of a block's Euclidean norm / s, rounded at random so that the mean is right (Alistarh et al., NeurIPS 2017, section 3.1, by blocks).

The variance of a block of n values is at most min(n / s^2, sqrt(n) / s) |x|^2. Codes have a fixed number of bits, so that a receiver knows their size.
Blocks whose norm is below 1.6e-36 (float64: 1e-305) are sent as 0.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, fields, packed, positive
from mpidml.core.flat import Array


class Qsgd(Codec):
    """Round to s = 2^(bits - 1) - 1 levels each side of 0; a code is a unit for each `block` values (a multiple of 512), then `bits` (2 or 4) a value. No residual."""

    has_residual = False
    unbiased = True

    def __init__(self, bits: int = 4, block: int = 512) -> None:
        if bits not in (2, 4) or not isinstance(bits, int):
            raise ValueError(f"bits = {bits} is neither 2 nor 4; give one of them")
        self.bits, self.block = bits, positive("block", block, 512)

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 4 ceil(n bits / 32) + itemsize ceil(n / block)."""
        n = prod(shape)
        return packed(n, self.bits) + itemsize * -(-n // self.block)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Round at random, by `noise` and index."""
        units, codes = self._fields(code, x)
        return bool(backend.stochastic_encode(x.reshape(-1), noise, self.block, self.bits, True, units, codes))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add code x unit."""
        units, codes = self._fields(code, out)
        backend.codes_decode_add(codes, units, self.block, self.bits, out.reshape(-1))

    def _fields(self, code: Array, x: Array) -> list[Array]:
        return fields(code, (x.dtype, -(-x.size // self.block)), (np.uint8, -(-x.size * self.bits // 8)))
