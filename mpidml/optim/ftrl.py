"""Follow the proximally regularised leader: weights that l1 holds at 0 are exactly 0 (McMahan et al., KDD 2013, section 3).

n = n + g^2, z = z + g - (q' - q) w with q' = (beta + sqrt(n)) / rate, then w = -(z - l1 sign(z)) / (q' + l2), 0 where |z| <= l1.

Without l1 and l2 this is `adagrad` with eps = beta. Both regularise the sum over all steps, so l1 = 1 holds a weight at 0 whose gradients
have not summed up to 1. What begins elsewhere than at 0 is drawn to there by the first step's q, as by every later one to where it then is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.optim.base import Link, State, number

LEAST_RATE = 1e-18  # one over it, times any sum of gradients, is a float32


class Ftrl(Link):
    """Keep `z`, the sum `n` of squares and q, one over the last rate, for each element; l1, l2 >= 0, beta > 0.

    A state on a server sees all gradients, in 1 / share pushes a clock. One on a worker takes its own for the whole batch's, and moves the weights
    by its share of the way to where they would then be: their mean over the workers is no longer exactly 0 (with one worker it is).
    """

    descends = True

    def __init__(self, l1: float = 0.01, l2: float = 0.0, beta: float = 1.0) -> None:
        self.l1 = number("l1", l1)
        self.l2 = number("l2", l2)
        self.beta = number("beta", beta)
        self.rests = not (self.l1 or self.l2)
        if not self.beta:
            raise ValueError("beta = 0 is not above 0, so the first step would be as long for the least gradient as for any; give a number such as 1")

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from zero."""
        return {"z": np.zeros(n, dtype), "n": np.zeros(n, dtype), "q": np.zeros(n, dtype)}

    def delta(self, backend: Any, g: Array, state: State, w: Array, rate: float, step: int, memory: float = 1.0) -> None:
        """Turn `g` into the change of the weights."""
        if self.share != 1.0:
            backend.scale(g, 1.0 / self.share)
        backend.ftrl_delta(w, *self._arrays(state), g, max(rate, LEAST_RATE), self.l1, self.l2, self.beta, 1.0)
        if self.share != 1.0:
            backend.scale(g, self.share)

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute z, n, q and out in one pass."""
        constants = max(rate, LEAST_RATE), self.l1, self.l2, self.beta, 1.0 / self.share
        if out is w:
            backend.ftrl_in_place(w, *self._arrays(state), g, *constants)
        else:
            backend.ftrl(w, out, *self._arrays(state), g, *constants)

    def _arrays(self, state: State) -> tuple[Array, Array, Array]:
        return state["z"], state["n"], state["q"]
