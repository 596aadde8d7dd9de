"""Describe what `evaluate` and `predict` are given besides the run's folder: their flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from mpidml.core.device import WANTED, check_wanted
from mpidml.core.errors import UserError, nearest
from mpidml.core.job import flag
from mpidml.core.parsing import parsed

T = TypeVar("T", bound="_Request")
UNSEEN = "CSV, Parquet: a word that the run never saw (ignore: zero in all features of the column; default: as the run)"


@dataclass(frozen=True)
class _Request:
    run: str = flag("", "folder of a run that has ended, as runs/20260131-120000")
    device: str = flag("auto", WANTED)

    def with_values(self: T, values: Mapping[str, Any], where: str) -> T:
        """Return this with `values` in their types; UserError names what cannot be."""
        found = replace(self, **{name: parsed(value, getattr(self, name), f"{where}: {name}") for name, value in values.items()})
        for f in fields(found):
            value, choices = getattr(found, f.name), f.metadata["choices"]
            if value and choices and value not in choices:
                raise UserError(f"--{f.name} {value}: there is no such choice; {nearest(value, choices)}")
        if not found.run:
            raise UserError(f"{where}: no run is named; give its folder, as runs/20260131-120000")
        check_wanted(found.device)
        return found


@dataclass(frozen=True)
class Evaluation(_Request):
    """The flags of `evaluate`."""

    data: str = flag("", "rows to evaluate on, as `train --data` takes them (default: the run's own test rows)")
    labels: str = flag("", "IDX, npy: file of the labels of --data (default: beside the data, by its standard name)")
    unseen: str = flag("", UNSEEN, ("refuse", "ignore"))
    plot: bool = flag(False, "draw evaluation.png: confusion matrix and ROC curves, or predicted over true values")
    out: str = flag("", "folder of evaluation.json (default: that of the run)")

    def with_values(self, values: Mapping[str, Any], where: str) -> Evaluation:
        """Return an evaluation with `values`; UserError also for what does nothing without --data."""
        found = super().with_values(values, where)
        for name in ("labels", "unseen"):
            if getattr(found, name) and not found.data:
                raise UserError(f"--{name} {getattr(found, name)}: does nothing without --data; leave it out")
        return found


@dataclass(frozen=True)
class Prediction(_Request):
    """The flags of `predict`."""

    data: str = flag("", "rows to predict, as `train --data` takes them; labels may be missing, and are not looked at")
    unseen: str = flag("", UNSEEN, ("refuse", "ignore"))
    out: str = flag("", "file of the predictions: .csv or .npz")

    def with_values(self, values: Mapping[str, Any], where: str) -> Prediction:
        """Return a prediction with `values`; UserError also where rows or file are not named."""
        found = super().with_values(values, where)
        if not found.data:
            raise UserError("--data: names no rows to predict; give a file, as new.csv")
        if not found.out.endswith((".csv", ".npz")):
            said = f"--out {found.out}: is of no known ending" if found.out else "--out: names no file"
            raise UserError(f"{said}; give one that ends in .csv or .npz, as predictions.csv")
        return found
