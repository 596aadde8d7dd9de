"""Send IEEE halves: 11 bits of precision, magnitudes from 6e-8 to 65504. What rounding leaves is sent later."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State
from mpidml.core.flat import Array


class Fp16(Codec):
    """Round to nearest, through float32; values beyond 65504 are sent as that, and the rest later."""

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 2 bytes a value."""
        return 2 * prod(shape)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Round; `noise` is not needed."""
        return bool(backend.fp16_encode(x.reshape(-1), state["residual"], code.view(np.uint16)))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add the halves."""
        backend.fp16_decode_add(code.view(np.uint16), out.reshape(-1))
