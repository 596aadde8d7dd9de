"""Say what the losses mean. z: (m, n) outputs; y: int64 (m,) labels in [0, n), not checked here; t: (m, n) targets.

Losses are sums over the rows, in float64: the caller divides by the batch that it knows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def softmax_xent(z: Array, y: Array, scale: float) -> float:
    """Return the sum of -log softmax(z)[y] and leave its gradient times `scale` in z: (softmax(z) - onehot(y)) scale."""
    if not len(z):
        return 0.0
    rows = np.arange(len(z))
    z -= z.max(axis=1, keepdims=True)
    at_label = z[rows, y].astype(np.float64)
    np.exp(z, out=z)
    total = z.sum(axis=1, keepdims=True)
    z /= total
    z[rows, y] -= 1
    z *= z.dtype.type(scale)
    return float(np.sum(np.log(total[:, 0].astype(np.float64)) - at_label))


def squared_error(z: Array, t: Array, scale: float) -> float:
    """Return the sum of |z - t|^2 / 2 and leave its gradient times `scale` in z: (z - t) scale."""
    z -= t
    total = 0.5 * float(np.sum(np.square(z, dtype=np.float64)))
    z *= z.dtype.type(scale)
    return total


def score_xent(z: Array, y: Array) -> tuple[float, int]:
    """Return the sum of -log softmax(z)[y] and how many rows have their largest output (the first of equals) at y."""
    if not len(z):
        return 0.0, 0
    return softmax_xent(z.copy(), y, 1.0), int(np.count_nonzero(z.argmax(axis=1) == y))


def score_squared(z: Array, t: Array, y: Array) -> tuple[float, int]:
    """Return the sum of |z - t|^2 / 2 and how many rows have their largest output (the first of equals) at y."""
    if not len(z):
        return 0.0, 0
    return squared_error(z.copy(), t, 1.0), int(np.count_nonzero(z.argmax(axis=1) == y))
