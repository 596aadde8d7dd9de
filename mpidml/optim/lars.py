"""Descend by momentum, each tensor's gradient brought to a share of the norm of its weights (You, Gitman and Ginsburg 2017):

    u = trust |w| / (|g| + decay |w|) (g + decay w),  v = beta v + u,  w = w - rate v

so that no layer's step is large beside its weights, whatever the batch and the rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import PerTensor, State, norm, number, shortened


class Lars(PerTensor):
    """Keep the sum `v`; trust, decay >= 0, 0 <= beta < 1.

    Tensors of one dimension go by plain momentum, v = beta v + g, as in the authors' code; `vectors` true treats them as the others. A tensor whose
    weights or gradient are all zero is not measured: u = g + decay w. What is not measured is as large as of the whole batch, as what is, whatever the share.
    """

    def __init__(self, trust: float = 0.001, decay: float = 1e-4, beta: float = 0.9, vectors: bool = False) -> None:
        super().__init__(vectors)
        self.trust = number("trust", trust)
        self.decay = number("decay", decay)
        self.beta = number("beta", beta, below=1)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from rest."""
        return {"v": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into v."""
        decay = self.decay * self.share
        for where, measured in self.tensors:
            part, weights, factor = g[where], w[where], 1.0 / self.share
            if measured:
                of_gradient, of_weights = norm(backend, part), norm(backend, weights)
                backend.decay_transform(part, weights, decay)
                if of_gradient and of_weights:
                    factor = self.trust * of_weights / (of_gradient + decay * of_weights)
            if factor != 1.0:
                backend.scale(part, factor)
        backend.momentum_transform(state["v"], g, shortened(self.beta, memory))
