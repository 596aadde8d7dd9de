"""Bound each element of the gradient: g = min(max(g, -limit), limit)."""

from __future__ import annotations

import math
from typing import Any

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number


class Clamp(Link):
    """Clip elementwise to [-limit, limit], limit > 0: unlike `clip` it turns the gradient, but needs no norm."""

    rests = True

    def __init__(self, limit: float = 1.0) -> None:
        self.limit = number("limit", limit, at_least=math.ulp(0.0))

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Clip each element of `g`."""
        backend.clip_transform(g, self.limit * self.share)
