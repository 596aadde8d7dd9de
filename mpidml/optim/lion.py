"""Descend by the sign of a mean of gradients: w = w - rate (sign(beta1 m + (1 - beta1) g) + decay w) (Chen et al., NeurIPS 2023).

Every element moves by the whole rate at each step, so choose a rate 3 to 10 times below that of Adam, and a decay as much larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number, shortened


class Lion(Link):
    """Keep the running mean m = beta2 m + (1 - beta2) g; 0 <= beta1, beta2 < 1, decay >= 0."""

    descends = True
    normalised = True

    def __init__(self, beta1: float = 0.9, beta2: float = 0.99, decay: float = 0.0) -> None:
        self.beta1 = number("beta1", beta1, below=1)
        self.beta2 = number("beta2", beta2, below=1)
        self.decay = number("decay", decay)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from zero."""
        return {"m": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into sign(beta1 m + (1 - beta1) g) + decay w."""
        backend.lion_transform(w, state["m"], g, *self._constants(memory))

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute m and out in one pass."""
        if out is w:
            backend.lion_in_place(w, state["m"], g, rate, *self._constants(memory))
        else:
            backend.lion(w, out, state["m"], g, rate, *self._constants(memory))

    def _constants(self, memory: float) -> tuple[float, float, float]:
        return shortened(self.beta1, memory), shortened(self.beta2, memory), self.decay
