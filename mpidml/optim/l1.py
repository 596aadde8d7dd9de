"""Pull the weights towards zero at one speed: g = g + rate sign(w) (the gradient of rate |w|, the lasso's).

`decay` pulls in proportion to w. Neither makes exact zeros: a weight ends up swinging around 0 by a step; `ftrl` does.
"""

from __future__ import annotations

from typing import Any

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number


class L1(Link):
    """Add the sign of the weights to the gradient; rate >= 0."""

    def __init__(self, rate: float = 1e-5) -> None:
        self.rate = number("rate", rate)

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Compute g += rate sign(w)."""
        backend.l1_transform(g, w, self.rate * self.share)
