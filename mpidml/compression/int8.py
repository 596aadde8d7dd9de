"""Send whole multiples, -127 to 127, of a unit for each block: the block's largest magnitude / 127. What rounding leaves is sent later."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, fields, positive, truth
from mpidml.core.flat import Array


class Int8(Codec):
    """Round to the nearest multiple; a code is a unit for each `block` values, then a byte a value.

    `residual=false`: what rounding leaves is lost. That saves an array as large as the model, and some of the time.
    """

    def __init__(self, block: int = 1024, residual: bool = True) -> None:
        self.block, self.has_residual = positive("block", block), truth("residual", residual)

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return n + itemsize ceil(n / block)."""
        n = prod(shape)
        return n + itemsize * -(-n // self.block)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Round; `noise` is not needed."""
        units, codes = self._fields(code, x)
        if self.has_residual:
            return bool(backend.int8_encode(x.reshape(-1), state["residual"], self.block, units, codes))
        return bool(backend.int8_round(x.reshape(-1), self.block, units, codes))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add code x unit."""
        units, codes = self._fields(code, out)
        backend.int8_decode_add(codes, units, self.block, out.reshape(-1))

    def _fields(self, code: Array, x: Array) -> list[Array]:
        return fields(code, (x.dtype, -(-x.size // self.block)), (np.int8, x.size))
