"""Tell classes apart by a network that is trained over all ranks; labels may be numbers or words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.ml.base import (
    ClassifierMixin,
    Estimator,
    Refused,
    available_if,
    check_classification_targets,
    column_or_1d,
    refuse,
    unique_labels,
    validate_data,
)


def _has_probabilities(estimator: MLPClassifier) -> bool:
    """Tell whether outputs are logarithms of odds, which those of margins and squares are not."""
    return estimator.loss.replace("-", "_") in ("auto", "cross_entropy", "binary_cross_entropy")


@dataclass(kw_only=True, repr=False, eq=False)
class MLPClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    """A classifier; learnt: `classes_` in sorted order, `model_` (network, weights, scaling), `loss_`, `n_iter_` (epochs), `summary_` of the run."""

    class_weights: str = Job.class_weights
    label_smoothing: float = Job.label_smoothing

    def fit(self, X: Any, y: Any, **others: Any) -> MLPClassifier:
        """Learn from rows X (n, features) and labels y (n,) (Collective on all ranks of the job, with the same X and y)."""
        refuse(self, others)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        self._train(X, codes, "classify")
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, **others: Any) -> MLPClassifier:
        """Learn one epoch more, from what was learnt before, `fit` included; of the first call `classes` names all that will ever come (Collective)."""
        refuse(self, others)
        is_first = not hasattr(self, "classes_")
        if is_first and classes is None:
            raise Refused("MLPClassifier.partial_fit: classes must be passed on the first call to partial_fit, all that will ever come")
        if not is_first and classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise Refused(f"MLPClassifier.partial_fit: `classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], reset=is_first)
        check_classification_targets(y)
        known = unique_labels(classes) if is_first else self.classes_
        y = column_or_1d(y, warn=True)
        if unknown := set(y) - set(known):
            found, given = np.array(sorted(unknown)).tolist(), np.asarray(known).tolist()
            raise Refused(f"MLPClassifier.partial_fit: `y` has labels {found} that are not in `classes`, {given}; give them on the first call")
        self.classes_ = known
        self._train(X, np.searchsorted(known, y), "classify", len(known), goes_on=True)
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
