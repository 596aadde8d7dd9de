"""Descend by the gradient over the length of all gradients so far: s = s + g^2, w = w - rate g / (sqrt(s) + eps) (Duchi, Hazan, Singer, JMLR 2011)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number


class Adagrad(Link):
    """Keep the sum `s` of squares for each element; eps >= 0. A clock counts once in it, in however many pushes it comes."""

    descends = True
    rests = True
    normalised = True

    def __init__(self, eps: float = 1e-10) -> None:
        self.eps = number("eps", eps)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from zero."""
        return {"s": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into g / (sqrt(s) + eps), on a state of this worker's gradients alone: one a clock."""
        backend.adagrad_transform(state["s"], g, self.eps, 1.0)

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute s and out in one pass, on a state that sees 1 / share gradients a clock."""
        if out is w:
            backend.adagrad_in_place(w, state["s"], g, rate, self.eps, self.share)
        else:
            backend.adagrad(w, out, state["s"], g, rate, self.eps, self.share)
