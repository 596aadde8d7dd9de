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


def weighted_xent(z: Array, y: Array, weights: Array, smoothing: float, scale: float) -> float:
    """Return the sum of -t log softmax(z), t = weights ((1 - smoothing) onehot(y) + smoothing / n); leave (sum(t) softmax(z) - t) scale in z.

    weights: (n,), one a class. The sum is not divided by the weights of the rows' labels, so any split of the rows has the same sum.
    Label smoothing: Szegedy et al., CVPR 2016.
    """
    t = np.full(z.shape, smoothing / max(z.shape[1], 1))
    t[np.arange(len(z)), y] += 1 - smoothing
    t *= weights.astype(np.float64)
    if not z.size:
        return 0.0
    z -= z.max(axis=1, keepdims=True)
    shifted = z.astype(np.float64)
    np.exp(z, out=z)
    total = z.sum(axis=1, keepdims=True)
    mass = t.sum(axis=1, keepdims=True)
    z[...] = (z / total * mass - t) * scale
    # what has no weight does not count, however far below it lies
    return float(np.sum(mass * np.log(total.astype(np.float64))) - np.sum(np.where(t == 0, 0, t * shifted)))


def huber(z: Array, t: Array, delta: float, scale: float) -> float:
    """Return the sum of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), e = z - t, and leave its gradient times `scale` in z.

    Source: Huber, Annals of Mathematical Statistics 35 (1964).
    """
    z -= t
    e = z.astype(np.float64)
    np.clip(z, -delta, delta, out=z)
    c = z.astype(np.float64)
    z *= z.dtype.type(scale)
    return float(np.sum(c * (e - 0.5 * c)))


def hinge(z: Array, y: Array, weights: Array, margin: float, scale: float) -> float:
    """Return the sum over rows and wrong classes j of weights[y] max(0, margin - z[y] + z[j]) / n; leave its gradient times `scale` in z.

    weights: (n,), one a class. Source: Weston, Watkins, ESANN 1999; the mean over the n classes is that of PyTorch's MultiMarginLoss.
    """
    if not z.size:
        return 0.0
    rows = np.arange(len(z))
    e = z - z[rows, y][:, None] + z.dtype.type(margin)
    e[rows, y] = 0
    share = weights[y].astype(np.float64) / z.shape[1]
    over = np.where(e <= 0, 0, e).sum(axis=1, dtype=np.float64)
    z[...] = ~(e <= 0) * (share * scale)[:, None]
    z[rows, y] = -z.sum(axis=1)
    return float(np.sum(share * over))


def binary_xent(z: Array, t: Array, scale: float) -> float:
    """Return the sum of -t log s - (1 - t) log(1 - s), s = 1 / (1 + exp(-z)), and leave its gradient times `scale` in z: (s - t) scale."""
    e = np.exp(-np.abs(z))
    total = float(np.sum((np.maximum(z, 0) - z * t).astype(np.float64) + np.log1p(e.astype(np.float64))))
    z[...] = (np.where(z < 0, e, 1) / (1 + e) - t) * z.dtype.type(scale)
    return total


def count_largest(z: Array, y: Array) -> int:
    """Return how many rows have their largest output (the first of equals, or the first NaN) at y."""
    return int(np.count_nonzero(z.argmax(axis=1) == y)) if len(z) else 0


def count_signs(z: Array, t: Array) -> int:
    """Return how many rows have all their outputs above 0 where the target is 1 and nowhere else; NaN is never right."""
    return int(np.count_nonzero((((z > 0) == (t > 0.5)) & ~np.isnan(z)).all(axis=1)))
