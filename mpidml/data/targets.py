"""Scale the targets of a regression for training, and say in their own unit how far off predictions are.

    trained on: (y - offset) / scale       offset: the mean of each column; scale: ONE number, the root of the mean variance of all columns

With one scale for all columns, what is minimised is the squared error in the unit of the targets: a loss times scale^2 is the loss in that unit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError

Array = np.ndarray[Any, Any]


class Targets(NamedTuple):
    """offset (k,) float64 and scale; `spread` is the sum of the squared deviations of all test targets from their means, 0 without test rows."""

    offset: Array
    scale: float
    spread: float

    @classmethod
    def fit(cls, name: str, y: Array, test_y: Array) -> Targets:
        """Fit to the training targets y (n, k) float64; constant targets get scale 1. UserError where they are too large to be squared."""
        with np.errstate(over="ignore", invalid="ignore"):
            offset = y.mean(axis=0)
            scale = float(np.sqrt(np.square(y - offset).mean()))
            spread = float(np.square(test_y - test_y.mean(axis=0)).sum()) if len(test_y) else 0.0
        if not (math.isfinite(scale) and math.isfinite(spread)):
            raise UserError(f"{name}: targets reach {np.abs(y).max():.3g}, too large to be squared; give them in another unit")
        return cls(offset, scale if scale > np.abs(offset).max(initial=0) * 1e-12 else 1.0, spread)

    def seen(self, y: Array) -> Targets:
        """Return the same scaling for other test targets y (n, k), whose spread it then knows."""
        return self._replace(spread=float(np.square(y - y.mean(axis=0)).sum()) if len(y) else 0.0)

    def scaled(self, y: Array) -> Array:
        """Return y (n, k) as it is trained on."""
        scaled: Array = (y - self.offset) / self.scale
        return scaled

    def unscaled(self, y: Array) -> Array:
        """Return scaled targets or outputs (n, k) in the targets' own unit, float64."""
        return y.astype(np.float64) * self.scale + self.offset

    @property
    def loss_factor(self) -> float:
        """What a squared error of scaled targets is multiplied by to be in their own unit."""
        return self.scale**2

    def squared_errors(self, outputs: Array, y: Array) -> float:
        """Return the sum of the squared errors, in the unit of the targets, of outputs for scaled targets y (n, k)."""
        return float(np.square(np.subtract(outputs, y, dtype=np.float64)).sum()) * self.loss_factor

    def quality(self, squared_errors: float, rows: float) -> dict[str, float | None]:
        """Return the root of the mean squared error and R2, the share of the test targets' variance that is explained (None if they are all equal)."""
        rmse = math.sqrt(squared_errors / (rows * len(self.offset)))
        return {"test_rmse": rmse, "test_r2": 1 - squared_errors / self.spread if self.spread > 0 else None}
