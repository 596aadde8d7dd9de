"""Bound the length of the whole gradient: g = g min(1, limit / |g|) (Pascanu et al., ICML 2013)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number


class Clip(Link):
    """Scale the gradient down to the Euclidean norm `limit` > 0 if it is longer.

    Each of n workers clips its own part to limit / n: the sum is never longer than the limit, but not what clipping the sum would give.
    """

    scope: ClassVar[Literal["elementwise", "tensor", "global"]] = "global"
    rests = True

    def __init__(self, limit: float = 1.0) -> None:
        self.limit = number("limit", limit, at_least=0.0)
        if not self.limit:
            raise ValueError("limit = 0 is not above 0 and would let no gradient pass; give a positive number")

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Compute g *= limit / |g| if |g| > limit; a gradient with NaN stays as it is."""
        norm, limit = math.sqrt(backend.sum_of_squares(g)), self.limit * self.share
        if norm > limit:
            backend.scale(g, limit / norm)
