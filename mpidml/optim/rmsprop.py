"""Descend by the gradient over its recent size: v = alpha v + (1 - alpha) g^2, w = w - rate g / (sqrt(v) + eps) (Tieleman and Hinton 2012)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number


class Rmsprop(Link):
    """Keep the running mean `v` of squares; 0 <= alpha < 1, eps >= 0, added to the root as PyTorch does."""

    descends = True
    normalised = True

    def __init__(self, alpha: float = 0.99, eps: float = 1e-8) -> None:
        self.alpha = number("alpha", alpha, below=1)
        self.eps = number("eps", eps)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from zero."""
        return {"v": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into g / (sqrt(v) + eps)."""
        backend.rmsprop_transform(state["v"], g, self.alpha, self.eps)

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute v and out in one pass."""
        if out is w:
            backend.rmsprop_in_place(w, state["v"], g, rate, self.alpha, self.eps)
        else:
            backend.rmsprop(w, out, state["v"], g, rate, self.alpha, self.eps)
