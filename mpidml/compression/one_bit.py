"""Send the sign, and the mean magnitude of each block; the rest is sent later (Karimireddy et al., ICML 2019; after Seide et al., Interspeech 2014)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, fields, packed, positive
from mpidml.core.flat import Array


class OneBit(Codec):
    """Send plus or minus a unit for each `block` values, a multiple of 512; a code is the units, then a bit a value."""

    def __init__(self, block: int = 1024) -> None:
        self.block = positive("block", block, 512)

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 4 ceil(n / 32) + itemsize ceil(n / block)."""
        n = prod(shape)
        return packed(n, 1) + itemsize * -(-n // self.block)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Take signs; `noise` is not needed."""
        units, codes = self._fields(code, x)
        return bool(backend.one_bit_encode(x.reshape(-1), state["residual"], self.block, units, codes))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add plus or minus the units."""
        units, codes = self._fields(code, out)
        backend.bits_decode_add(codes, units, self.block, out.reshape(-1))

    def _fields(self, code: Array, x: Array) -> list[Array]:
        return fields(code, (x.dtype, -(-x.size // self.block)), (np.uint8, -(-x.size // 8)))
