"""Learn amounts by a network that is trained over all ranks; targets are scaled for it, predictions are in their own unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.ml.base import Estimator, Refused, RegressorMixin, refuse, validate_data


@dataclass(kw_only=True, repr=False, eq=False)
class MLPRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    """A regressor for one target or several; learnt: `model_` (network, weights, scaling), `loss_`, `n_iter_` (epochs), `summary_` of the run."""

    def fit(self, X: Any, y: Any, **others: Any) -> MLPRegressor:
        """Learn from rows X (n, features) and targets y (n,) or (n, k) (Collective on all ranks of the job, with the same X and y)."""
        refuse(self, others)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        self._is_column = y.ndim == 1
        self._train(X, y, "regress")
        return self

    def partial_fit(self, X: Any, y: Any, **others: Any) -> MLPRegressor:
        """Learn one epoch more, from what was learnt before, `fit` included; rows and targets stay scaled as those of the first call (Collective)."""
        refuse(self, others)
        is_first = not hasattr(self, "_kept")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True, reset=is_first)
        if not is_first and (now := 1 if y.ndim == 1 else y.shape[1]) != self.model_.network.n_outputs:
            raise Refused(f"MLPRegressor.partial_fit: y has {now} target(s), {self.model_.network.n_outputs} were learnt before; give as many")
        self._is_column = y.ndim == 1
        self._train(X, y, "regress", goes_on=True)
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
