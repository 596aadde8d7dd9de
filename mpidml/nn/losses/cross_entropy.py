"""Lose -log softmax(z)[y] at each row, weighed by its class, with labels that may be smoothed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.losses.base import Loss


class CrossEntropy(Loss):
    """-sum of t log softmax(z), t = weights ((1 - s) onehot(y) + s / n), as PyTorch's before its mean (smoothing: Szegedy et al., CVPR 2016).

    The mean is over the samples of the global batch, not over their weights: it then is a sum of what workers know by themselves.
    """

    def __init__(self, class_weights: Array | None = None, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label smoothing {label_smoothing} is not in [0, 1); give one such as 0.1")
        self.class_weights, self.label_smoothing = class_weights, float(label_smoothing)
        self.plain = class_weights is None and not label_smoothing

    @property
    def kernel(self) -> str:
        """The kernel without weights and smoothing where there are none."""
        return "softmax_xent" if self.plain else "weighted_xent"

    def probabilities(self, outputs: Array) -> Array:
        """Return the softmax."""
        z: Array = outputs.astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        return z

    def margins(self, outputs: Array) -> Array:
        """Return the log of p / (1 - p), whose order is that of p but where p is 1 within rounding."""
        z = outputs.astype(np.float64)
        rows, best = np.arange(len(z)), z.argmax(axis=1)
        most, e = z[rows, best], np.exp(z - z[rows, best][:, None])
        others: Array = z - most[:, None] - np.log(np.maximum(e.sum(axis=1, keepdims=True) - e, np.finfo(np.float64).tiny))
        z[rows, best] = -np.inf  # what is left of 1 beside the largest would be rounding
        second = z.max(axis=1)
        others[rows, best] = most - second - np.log(np.exp(z - second[:, None]).sum(axis=1))
        return others

    def constants(self, n_outputs: int, dtype: DTypeLike) -> tuple[Any, ...]:
        """Return weights and smoothing."""
        return () if self.plain else (self.factors(n_outputs, dtype), self.label_smoothing)
