"""Train by scikit-learn's conventions what the command line trains: the parameters are named like its flags, and every rank that calls `fit` gets the result.

    fit(X, y)    every rank of the job, the same X and y  ->  one run on all of them  ->  the same model on each
    predict(X)   each rank for itself

Nothing is printed, nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.nn.models import layers_of
from mpidml.rates.base import make_rates
from mpidml.runtime.net import net_text
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.start import Kept, Start
from mpidml.strategies.base import train

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets, unique_labels
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError:
    raise UserError("mpidml.MLPClassifier, mpidml.MLPRegressor: need scikit-learn 1.6 or later, which is not installed; pip install 'mpidml[ml]'") from None

__all__ = [
    "ClassifierMixin", "Estimator", "Refused", "RegressorMixin", "available_if", "check_classification_targets", "column_or_1d", "refuse", "unique_labels",
    "validate_data",
]  # fmt: skip


class Refused(UserError, ValueError):
    """A parameter or data that cannot be: what scikit-learn expects to be a ValueError, and one line on one rank where nobody catches it."""


def refuse(estimator: Any, others: dict[str, Any]) -> None:
    """Refuse what else a caller passes to `fit`; meta-estimators see by its signature that it takes no weights."""
    name = type(estimator).__name__
    if others.pop("sample_weight", None) is not None:
        remedy = "; class_weights weighs classes" if hasattr(estimator, "class_weights") else ""
        raise Refused(f"{name}: sample_weight: rows have no weights of their own here; leave it out{remedy}")
    if others:
        raise TypeError(f"{name}: got an unexpected keyword argument '{next(iter(others))}'")


@dataclass(kw_only=True, repr=False, eq=False)
class Estimator(BaseEstimator):  # type: ignore[misc]
    """Parameters of every network; those that `Job` has mean what its flags do, with its defaults.

    `dtype` "auto": that of X, as in scikit-learn. `random_state`: the seed, a whole number; None or a generator draws one on rank 0.
    """

    hidden: tuple[int, ...] = Job.hidden
    activation: str = Job.activation
    dropout: float = Job.dropout
    model: str = Job.model
    loss: str = Job.loss
    optimizer: str = Job.optimizer
    lr: float = Job.lr
    lr_policy: str = Job.lr_policy
    epochs: int = Job.epochs
    batch: int = Job.batch
    scale: str = Job.scale
    validate: float = Job.validate
    patience: int = Job.patience
    strategy: str = Job.strategy
    sync: str = Job.sync
    servers: str = Job.servers
    reads: str = Job.reads
    assign: str = Job.assign
    deterministic: bool = Job.deterministic
    dtype: str = "auto"
    backend: str = Job.backend
    device: str = Job.device
    random_state: Any = Job.seed

    def _train(self, x: Array, y: Array, task: str, n_classes: int = 0, goes_on: bool = False) -> None:
        """Learn from rows x and labels 0..k-1 or targets y; `goes_on`: one epoch more, of what was learnt (Collective on all ranks of the job)."""
        name = type(self).__name__
        kept_before: Kept | None = getattr(self, "_kept", None) if goes_on else None
        if goes_on:
            self._check_goes_on()
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("dtype", "random_state")}
        values |= {"task": task, "hold_out": 0.0, "dtype": str(x.dtype) if self.dtype == "auto" else self.dtype}
        kept: dict[str, Any] = {}
        try:
            with given_or_all(None) as ranks:
                seed = self.random_state
                if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
                    seed = ranks.bcast(check_random_state(seed).randint(2**31) if ranks.rank == 0 else None)
                job = Job().with_values(values | {"seed": int(seed)}, name)
                if len(layers_of(job, net_text(job)).heads) > 1:
                    raise UserError(f"{name}: model {job.model} has several heads, and an estimator learns one thing; use mpidml.train, or a net without them")
                if kept_before is not None:
                    job = job.with_values({"epochs": kept_before.epochs + 1, "dtype": str(kept_before.model.network.dtype)}, name)
                elif goes_on:
                    job = job.with_values({"epochs": 1}, name)
                summary = train(job, ranks, quiet=True, write=False, keep=kept, data=(x, y), start=Start(n_classes, kept_before))
        except UserError as error:
            raise Refused(str(error)) from None
        if not np.isfinite(kept["values"]).all():
            raise Refused(f"{name}: the loss is no number since clock {summary['diverged_at_clock']}; choose a lower lr than {self.lr}")
        self.model_, self._kept = kept["model"], kept["kept"]
        self.loss_, self.n_iter_, self.summary_ = summary["final_loss"], self._kept.epochs, summary

    def _check_goes_on(self) -> None:
        """Refuse what belongs to a whole run, or changes the shape of what was learnt."""
        name = type(self).__name__
        for option in ("validate", "patience"):
            if getattr(self, option):
                raise Refused(f"{name}.partial_fit: {option} = {getattr(self, option)} is for a whole run, and this is one epoch of it; use fit, or leave it out")
        rates = make_rates(self.lr_policy)
        if rates is not None and rates.needs_end:
            raise Refused(f"{name}.partial_fit: lr_policy {self.lr_policy} takes the whole run, and nobody knows how many epochs there will be; choose another")

    def _outputs(self, x: Any) -> Array:
        check_is_fitted(self)
        return self.model_.outputs(validate_data(self, x, dtype=[np.float64, np.float32], reset=False))  # type: ignore[no-any-return]
