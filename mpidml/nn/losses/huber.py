"""Lose quadratically near the target and linearly far from it, so that outliers pull no harder (Huber, Ann. Math. Stat. 35, 1964)."""

from __future__ import annotations

from typing import Any, ClassVar

from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.losses.base import Loss, number


class Huber(Loss):
    """Sum over the outputs of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), e = z - t."""

    from_values: ClassVar[bool] = True
    any_amount: ClassVar[bool] = True

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = number("delta", delta)

    @property
    def kernel(self) -> str:
        """huber."""
        return "huber"

    def constants(self, n_outputs: int, dtype: DTypeLike) -> tuple[Any, ...]:
        """Return delta."""
        return (self.delta,)

    def check_targets(self, targets: Array) -> None:
        """Take any."""
