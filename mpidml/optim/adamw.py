"""Descend as Adam does and decay the weights beside it: w = w - rate (m' / (sqrt(v') + eps) + decay w) (Loshchilov and Hutter, ICLR 2019).

The decay is decoupled: it is not divided by the size of the gradients, as that of `decay+adam` is. As in PyTorch it is multiplied by the learning rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number, shortened


class AdamW(Link):
    """Keep the running mean `m` of the gradient and `v` of its square; 0 <= beta1, beta2 < 1, decay, eps >= 0."""

    descends = True
    normalised = True

    def __init__(self, decay: float = 0.01, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.decay = number("decay", decay)
        self.beta1 = number("beta1", beta1, below=1)
        self.beta2 = number("beta2", beta2, below=1)
        self.eps = number("eps", eps)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from zero; the bias corrections make up for it."""
        return {"m": np.zeros(n, dtype), "v": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into m' / (sqrt(v') + eps) + decay w."""
        backend.adam_transform(w, state["m"], state["v"], g, *self._constants(step, memory))

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute m, v and out in one pass."""
        if out is w:
            backend.adam_in_place(w, state["m"], state["v"], g, rate, *self._constants(step, memory))
        else:
            backend.adam(w, out, state["m"], state["v"], g, rate, *self._constants(step, memory))

    def _constants(self, step: int, memory: float) -> tuple[float, float, float, float, float, float]:
        beta1 = shortened(self.beta1, memory)  # the mean of squares is no momentum: its memory stays
        return beta1, self.beta2, self.eps, 1 - beta1**step, 1 - self.beta2**step, self.decay
