"""Give both sides the same numbers: a multilayer perceptron's weights and one batch, made of nothing but NumPy's seeded draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
RATE, DECAY = 0.01, 0.9
N_COMPARED = 20
"""Steps whose losses must agree before anything is timed."""
LOSS_TOLERANCE = 1e-3


class Problem(NamedTuple):
    """A batch x (m, sizes[0]) float32 with labels y int64 (m,), and weights (n_in, n_out) and biases (n_out,) of each layer, float32."""

    sizes: list[int]
    x: Array
    y: Array
    weights: list[Array]
    biases: list[Array]


def problem(sizes: Sequence[int], batch: int, seed: int = 0) -> Problem:
    """Draw a problem: inputs in [0, 1) as an image's, labels at random, weights normal of variance 2 / n_in (He et al., ICCV 2015)."""
    random = np.random.default_rng(seed)
    x = random.random((batch, sizes[0]), np.float32)
    y = random.integers(0, sizes[-1], batch)
    pairs = list(pairwise(sizes))
    weights = [(random.standard_normal(pair) * (2 / pair[0]) ** 0.5).astype(np.float32) for pair in pairs]
    return Problem(list(sizes), x, y, weights, [np.zeros(n_out, np.float32) for _, n_out in pairs])
