"""Descend by running means: w = w - rate m' / (sqrt(v') + eps), m' and v' without their bias (Kingma and Ba, ICLR 2015, algorithm 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number, shortened


class Adam(Link):
    """Keep the running mean `m` of the gradient and `v` of its square; 0 <= beta1, beta2 < 1, eps >= 0."""

    descends = True
    normalised = True

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1 = number("beta1", beta1, below=1)
        self.beta2 = number("beta2", beta2, below=1)
        self.eps = number("eps", eps)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from zero; the bias corrections make up for it."""
        return {"m": np.zeros(n, dtype), "v": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into m' / (sqrt(v') + eps)."""
        backend.adam_transform(w, state["m"], state["v"], g, *self._constants(step, memory))

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute m, v and out in one pass."""
        if out is w:
            backend.adam_in_place(w, state["m"], state["v"], g, rate, *self._constants(step, memory))
        else:
            backend.adam(w, out, state["m"], state["v"], g, rate, *self._constants(step, memory))

    def _constants(self, step: int, memory: float) -> tuple[float, float, float, float, float, float]:
        beta1 = shortened(self.beta1, memory)  # the mean of squares is no momentum: its memory stays
        return beta1, self.beta2, self.eps, 1 - beta1**step, 1 - self.beta2**step, 0.0
