"""Lose what the margin lacks over each wrong class: the multi-class hinge loss (Weston, Watkins, ESANN 1999)."""

from __future__ import annotations

from typing import Any

from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.losses.base import Loss, number


class Hinge(Loss):
    """Sum over the wrong classes j of max(0, margin - z[y] + z[j]) / n, as PyTorch's MultiMarginLoss; each row weighed by its class."""

    def __init__(self, margin: float = 1.0, class_weights: Array | None = None) -> None:
        self.margin, self.class_weights = number("margin", margin), class_weights

    @property
    def kernel(self) -> str:
        """hinge."""
        return "hinge"

    def constants(self, n_outputs: int, dtype: DTypeLike) -> tuple[Any, ...]:
        """Return weights and margin."""
        return self.factors(n_outputs, dtype), self.margin
