"""Send plus or minus a unit where a value is large, nothing elsewhere; the rest is sent later.

With a number for a threshold, a value that has reached it is sent as that (Strom, Interspeech 2015). It must be found for each job, and one that is far off ruins it:
too large a one sends late, too small a one little. The adaptive one is 0.7 of the mean magnitude of what is to be sent, block by block, and what exceeds it
is sent as its own mean (Li et al. 2016). A threshold sent in place of that mean, as above, leaves so much behind where gradients have long tails that
training with momentum does not follow.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, fields, packed, positive
from mpidml.core.flat import Array

BLOCK = 1 << 15
LEAST, MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class TwoBit(Codec):
    """Send three values; a code is the units, then 2 bits a value. `threshold`: a number > 0, or adaptive, by `block` values, a multiple of 256 (32,768)."""

    def __init__(self, threshold: float | str = "adaptive", block: int | None = None) -> None:
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold != "adaptive" and not (number and 0 < float(threshold) < float("inf")):
            raise ValueError(f"threshold = {threshold} is neither a number > 0 nor 'adaptive'; give one of them")
        if number and not LEAST <= float(threshold) <= MOST:
            raise ValueError(f"threshold = {threshold} is out of the range of float32; give a number from {LEAST:.3g} to {MOST:.3g}")
        self.threshold = None if threshold == "adaptive" else float(threshold)
        if number and block is not None:
            raise ValueError(f"block = {block} does nothing beside a threshold that is a number; leave it out")
        self.block = positive("block", BLOCK if block is None else block, 256)

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 4 ceil(n / 16) + itemsize ceil(n / block); a fixed threshold is one unit."""
        n = prod(shape)
        return packed(n, 2) + itemsize * self._n_units(n)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Compare with the threshold; `noise` is not needed."""
        (units, codes), flat = self._fields(code, x), x.reshape(-1)
        if self.threshold is None:
            return bool(backend.adaptive_encode(flat, state["residual"], self.block, units, codes))
        backend.put(units, unit := np.full(1, self.threshold, x.dtype))
        return bool(backend.two_bit_encode(flat, state["residual"], float(unit[0]), codes) < float("inf"))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add code x unit."""
        units, codes = self._fields(code, out)
        backend.codes_decode_add(codes, units, self.block if self.threshold is None else max(out.size, 1), 2, out.reshape(-1))

    def _n_units(self, n: int) -> int:
        return 1 if self.threshold is not None else -(-n // self.block)

    def _fields(self, code: Array, x: Array) -> list[Array]:
        return fields(code, (x.dtype, self._n_units(x.size)), (np.uint8, -(-x.size // 4)))
