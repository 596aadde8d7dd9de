"""Send IEEE halves: 11 bits of precision, magnitudes from 6e-8 to 65504. What rounding leaves is sent later."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, truth
from mpidml.core.flat import Array


class Fp16(Codec):
    """Round to nearest, through float32; values beyond 65504 are sent as that, and the rest later.

    `residual=false`: what rounding leaves is lost, also what is beyond 65504. That saves an array as large as the model, and half of the time.
    """

    def __init__(self, residual: bool = True) -> None:
        self.has_residual = truth("residual", residual)

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 2 bytes a value."""
        return 2 * prod(shape)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Round; `noise` is not needed."""
        flat, codes = x.reshape(-1), code.view(np.uint16)
        return bool(backend.fp16_encode(flat, state["residual"], codes) if self.has_residual else backend.fp16_round(flat, codes))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add the halves."""
        backend.fp16_decode_add(code.view(np.uint16), out.reshape(-1))
