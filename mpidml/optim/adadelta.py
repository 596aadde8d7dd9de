"""Descend by steps in the units of the weights: u = g sqrt(d + eps) / sqrt(v + eps), w = w - rate u (Zeiler 2012).

v = rho v + (1 - rho) g^2 and d = rho d + (1 - rho) u^2. The method is meant for a learning rate of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number


class Adadelta(Link):
    """Keep the running means `v` of squared gradients and `d` of squared steps; 0 <= rho < 1, eps > 0, without which no first step would be."""

    descends = True
    normalised = True

    def __init__(self, rho: float = 0.9, eps: float = 1e-6) -> None:
        self.rho = number("rho", rho, below=1)
        self.eps = number("eps", eps)
        if not self.eps:
            raise ValueError("eps = 0 is not above 0, so the first step, and all after it, would be 0; give a number such as 1e-6")

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from zero."""
        return {"v": np.zeros(n, dtype), "d": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into u."""
        backend.adadelta_transform(state["v"], state["d"], g, self.rho, self.eps)

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute v, d and out in one pass."""
        if out is w:
            backend.adadelta_in_place(w, state["v"], state["d"], g, rate, self.rho, self.eps)
        else:
            backend.adadelta(w, out, state["v"], state["d"], g, rate, self.rho, self.eps)
