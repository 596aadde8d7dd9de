"""Descend along the gradient plus one look ahead: v = beta v + g, w = w - rate (g + beta v) (Sutskever et al., ICML 2013)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number, shortened


class Nesterov(Link):
    """Keep the decaying sum `v` of gradients; 0 <= beta < 1."""

    descends = True

    def __init__(self, beta: float = 0.9) -> None:
        self.beta = number("beta", beta, below=1)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from rest."""
        return {"v": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into g + beta v."""
        backend.nesterov_transform(state["v"], g, shortened(self.beta, memory))

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute v and out in one pass."""
        if out is w:
            backend.nesterov_in_place(w, state["v"], g, rate, shortened(self.beta, memory))
        else:
            backend.nesterov(w, out, state["v"], g, rate, shortened(self.beta, memory))
