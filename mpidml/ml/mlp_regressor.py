"""Learn amounts by a network that is trained over all ranks; targets are scaled for it, predictions are in their own unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.ml.base import Estimator, RegressorMixin, validate_data


@dataclass(kw_only=True, repr=False, eq=False)
class MLPRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    """A regressor for one target or several; learnt: `model_` (network, weights, scaling), `loss_`, `n_iter_` (epochs), `summary_` of the run."""

    loss: str = "squared_error"

    def fit(self, X: Any, y: Any) -> MLPRegressor:
        """Learn from rows X (n, features) and targets y (n,) or (n, k) (Collective on all ranks of the job, with the same X and y)."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        self._is_column = y.ndim == 1
        self._train(X, y, "regress")
        return self

    def predict(self, X: Any) -> Array:
        """Return the targets of each row, (n,) or (n, k) as `fit` was given them."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._is_column else outputs

    def __sklearn_tags__(self) -> Any:
        """Say that several targets are taken."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
