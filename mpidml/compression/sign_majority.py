"""Vote on signs: each sender sends 1 bit a value, and the sign of the sum of the votes is the result (Bernstein et al., ICML 2018, algorithm 3).

    decoded votes of three senders    +1 -1 +1    total +1    combine -> +1

A value of exactly 0 votes by a coin of its own, or rows that nobody touched would all move one way; an even vote gives 0, so results go back in 2 bits a value. The result
is no gradient but its sign, so the learning rate is the step itself, and there is no residual.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Shape, State, fields, make_codec, packed
from mpidml.core.flat import Array


class SignMajority(Codec):
    """Send signs; decoded they are 1 and -1."""

    has_residual = False
    votes = True

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 4 ceil(n / 32)."""
        return packed(prod(shape), 1)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Take signs; `noise` decides for zeros."""
        return bool(backend.vote_encode(x.reshape(-1), noise, *self._fields(code, x)))

    def spoil(self, x: Array, code: Array) -> None:
        """Let votes be: no bit is NaN, and the sign of a sum of them is finite."""

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add the votes."""
        unit = backend.zeros(1, out.dtype)
        unit.fill(1)
        backend.bits_decode_add(*self._fields(code, out), unit, max(out.size, 1), out.reshape(-1))

    def combine(self, backend: Any, total: Array) -> None:
        """Take the sign of the sum."""
        backend.sign(total, total)

    def of_results(self) -> Codec:
        """Return a codec that holds -1, 0 and 1 as they are, in 2 bits a value."""
        return make_codec("ternary")

    def _fields(self, code: Array, x: Array) -> list[Array]:
        return fields(code, (np.uint8, -(-x.size // 8)))
