"""Tell classes apart by a network that is trained over all ranks; labels may be numbers or words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.ml.base import ClassifierMixin, Estimator, available_if, check_classification_targets, column_or_1d, validate_data


def _has_probabilities(estimator: MLPClassifier) -> bool:
    """Tell whether outputs are logarithms of odds, which those of margins and squares are not."""
    return estimator.loss.replace("-", "_") in ("cross_entropy", "binary_cross_entropy")


@dataclass(kw_only=True, repr=False, eq=False)
class MLPClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    """A classifier; learnt: `classes_` in sorted order, `model_` (network, weights, scaling), `loss_`, `n_iter_` (epochs), `summary_` of the run."""

    class_weights: str = Job.class_weights
    label_smoothing: float = Job.label_smoothing

    def fit(self, X: Any, y: Any) -> MLPClassifier:
        """Learn from rows X (n, features) and labels y (n,) (Collective on all ranks of the job, with the same X and y)."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        self._train(X, codes, "classify")
        return self

    def predict(self, X: Any) -> Array:
        """Return the label of each row."""
        outputs = self._outputs(X)
        one = outputs.shape[1] == 1 and len(self.classes_) == 2  # a single output is the odds of the second class
        found: Array = self.classes_[(outputs[:, 0] > 0).astype(np.int64) if one else outputs.argmax(axis=1)]
        return found

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, in the order of `classes_` (n, classes)."""
        outputs = self._outputs(X)
        if outputs.shape[1] == 1 and len(self.classes_) == 2:
            outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=1)
        odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        found: Array = odds / odds.sum(axis=1, keepdims=True)
        return found
