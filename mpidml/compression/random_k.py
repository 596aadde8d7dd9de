"""Send one value from each of k stretches, drawn by the seed: all senders draw the same places, so their codes can be added as they are, and no place is sent.

Values have no size to be chosen by, so a value waits for n / k steps on the mean: other codecs lose less. It is the cheapest to encode (Stich et al., NeurIPS
2018; without residual: Wangni et al., NeurIPS 2018).
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, fields, share, truth
from mpidml.core.flat import Array


class RandomK(Codec):
    """Send k = ceil(ratio n) values; a code is the key of the draw, 8 bytes, then the values.

    `unbiased`: each value stands for its stretch and is sent times the stretch's length, without a residual: the mean over the draws is right, at a
    variance of (length - 1) |x|^2.
    """

    same_noise = True

    def __init__(self, ratio: float = 0.01, unbiased: bool = False) -> None:
        self.ratio, self.unbiased = share("ratio", ratio), truth("unbiased", unbiased)
        self.has_residual = not self.unbiased

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 8 + itemsize k."""
        return 8 + itemsize * ceil(self.ratio * prod(shape))

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Move, or take, the values that `noise` says; all of x is looked at, whether it is sent or not."""
        key, values = self._fields(code, x)
        backend.put(key, np.full(1, noise))
        if self.unbiased:
            backend.strata_take(x.reshape(-1), noise, values)
            return bool(backend.is_finite(x.reshape(-1)) and backend.is_finite(values))
        residual = state["residual"]
        backend.add(residual, x.reshape(-1))
        finite = bool(backend.is_finite(residual))
        backend.strata_move(residual, noise, values)
        return finite

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add the values where the key says."""
        key, values = self._fields(code, out)
        backend.strata_add(values, backend.host(key)[0], out.reshape(-1))

    def of_results(self) -> Codec:
        """Return the codec that sends values as they are: a sum has some in the places of the draw alone, and each stands for its stretch already."""
        return RandomK(self.ratio) if self.unbiased else self

    def _fields(self, code: Array, x: Array) -> list[Array]:
        return fields(code, (np.uint64, 1), (x.dtype, ceil(self.ratio * x.size)))
