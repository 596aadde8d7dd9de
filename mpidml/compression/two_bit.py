"""Send plus or minus a threshold where a value has reached it, nothing elsewhere; the rest is sent later (Strom, Interspeech 2015).

A fixed threshold must be found for each job, and one that is far off ruins it: too large a one sends late, too small a one little. The adaptive one is the
root mean square of what was to be sent the time before, tensor by tensor: it grows with a residual that grows, so none grows without end.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.compression.base import Codec, Shape, State, fields, packed
from mpidml.core.flat import Array


class TwoBit(Codec):
    """Send three values; a code is the threshold, then 2 bits a value. `threshold`: a number > 0, or adaptive."""

    def __init__(self, threshold: float | str = "adaptive") -> None:
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold != "adaptive" and not (number and 0 < float(threshold) < float("inf")):
            raise ValueError(f"threshold = {threshold} is neither a number > 0 nor 'adaptive'; give one of them")
        self.threshold = None if threshold == "adaptive" else float(threshold)

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 4 ceil(n / 16) + itemsize."""
        return packed(prod(shape), 2) + itemsize

    def init(self, shape: Shape, dtype: DTypeLike) -> State:
        """Return the residual and, where it adapts, the next threshold: 0 as long as nothing is known."""
        return super().init(shape, dtype) | ({} if self.threshold else {"threshold": np.zeros(1)})

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Compare with the threshold and find the next; `noise` is not needed."""
        (threshold, codes), flat = self._fields(code, x), x.reshape(-1)
        threshold[0] = self.threshold or float(state["threshold"][0]) or sqrt(backend.sum_of_squares(flat) / max(x.size, 1))
        total = float(backend.two_bit_encode(flat, state["residual"], float(threshold[0]), codes))
        if self.threshold is None:
            state["threshold"][0] = sqrt(total / max(x.size, 1))
        return total < float("inf")

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add code x threshold."""
        threshold, codes = self._fields(code, out)
        backend.codes_decode_add(codes, threshold, max(out.size, 1), 2, out.reshape(-1))

    def _fields(self, code: Array, x: Array) -> list[Array]:
        return fields(code, (x.dtype, 1), (np.uint8, -(-x.size // 4)))
