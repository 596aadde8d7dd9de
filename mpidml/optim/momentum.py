"""Descend along a decaying sum of gradients: v = beta v + g, w = w - rate v (Polyak 1964)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number, shortened


class Momentum(Link):
    """Keep the sum `v`; 0 <= beta < 1."""

    descends = True

    def __init__(self, beta: float = 0.9) -> None:
        self.beta = number("beta", beta, below=1)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from rest."""
        return {"v": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into v."""
        backend.momentum_transform(state["v"], g, shortened(self.beta, memory))

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute v and out in one pass."""
        if out is w:
            backend.momentum_in_place(w, state["v"], g, rate, shortened(self.beta, memory))
        else:
            backend.momentum(w, out, state["v"], g, rate, shortened(self.beta, memory))
