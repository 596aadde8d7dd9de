"""Descend as AdamW does, each tensor's step brought to the norm of its weights (You et al., ICLR 2020, algorithm 2, phi(z) = z):

    u = m' / (sqrt(v') + eps) + decay w,  w = w - rate |w| / |u| u           m', v': running means without their bias
"""

from __future__ import annotations

from typing import Any

from mpidml.core.flat import Array
from mpidml.optim.base import Moments, PerTensor, State, norm


class Lamb(PerTensor, Moments):
    """Keep the running mean `m` of the gradient and `v` of its square; 0 <= beta1, beta2 < 1, decay, eps >= 0.

    Tensors of one dimension go by plain Adam without decay, as in the authors' code; `vectors` true treats them as the others. A tensor whose weights
    or step are all zero is not measured: its step is u.
    """

    def __init__(self, decay: float = 0.01, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-6, vectors: bool = False) -> None:
        PerTensor.__init__(self, vectors)
        Moments.__init__(self, beta1, beta2, eps, decay)

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into |w| / |u| u, tensor by tensor."""
        *constants, decay = self._constants(step, memory)
        for where, measured in self.tensors:
            part, weights = g[where], w[where]
            backend.adam_transform(weights, state["m"][where], state["v"][where], part, *constants, decay if measured else 0.0)
            of_step, of_weights = norm(backend, part), norm(backend, weights)
            if measured and of_step and of_weights:
                backend.scale(part, of_weights / of_step)
