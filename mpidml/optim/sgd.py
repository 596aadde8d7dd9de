"""Descend along the gradient itself: w = w - rate g."""

from __future__ import annotations

from typing import Any

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State


class Sgd(Link):
    """Keep no state; the direction is the gradient."""

    descends = True
    rests = True

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Leave `g` as it is."""

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute out = w - rate g."""
        if out is w:
            backend.descend_in_place(w, g, rate)
        else:
            backend.descend(w, out, g, rate)
