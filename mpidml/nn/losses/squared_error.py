"""Lose |z - t|^2 / 2 at each row; t: float targets, or 1 in the label's column."""

from __future__ import annotations

from typing import ClassVar

from mpidml.core.flat import Array
from mpidml.nn.losses.base import Loss


class SquaredError(Loss):
    """Sum over the outputs of (z - t)^2 / 2."""

    from_values: ClassVar[bool] = True
    any_amount: ClassVar[bool] = True

    @property
    def kernel(self) -> str:
        """squared_error."""
        return "squared_error"

    def check_targets(self, targets: Array) -> None:
        """Take any."""
