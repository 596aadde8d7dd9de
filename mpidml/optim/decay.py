"""Pull the weights towards zero: g = g + rate w (the gradient of rate |w|^2 / 2)."""

from __future__ import annotations

from typing import Any

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number


class Decay(Link):
    """Add weight decay to the gradient; rate >= 0."""

    def __init__(self, rate: float = 1e-4) -> None:
        self.rate = number("rate", rate)

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Compute g += rate w."""
        backend.decay_transform(g, w, self.rate * self.share)
