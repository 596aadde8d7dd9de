"""Say what each of several heads learns of y: which columns, and whether they are classes or amounts.

    y        | kind | price | size |  float64 (n, 3): classes as their numbers, amounts scaled as each head's are
    heads      kind   price, size
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.raw import Array, Label, integer_labels, is_amount
from mpidml.data.targets import Targets


class Learnt(NamedTuple):
    """What one head learns: columns of y with their names; `n_outputs`: classes, or targets. `classes` are their names; amounts have `targets`."""

    name: str
    columns: tuple[int, ...]
    names: tuple[str, ...]
    n_outputs: int
    classes: tuple[str, ...] = ()
    targets: Targets | None = None
    class_weights: Array | None = None

    @property
    def is_labels(self) -> bool:
        """Whether it learns classes."""
        return bool(self.classes)

    @property
    def target_names(self) -> list[str]:
        """Return the names of its targets, as a regression's."""
        return ["target"] if len(self.columns) == 1 else list(self.names)

    def answers(self, y: Array, dtype: Any) -> Array:
        """Return its part of y: labels int64 (n,), or scaled targets (n, k) in `dtype`."""
        return y[:, self.columns[0]].astype(np.int64) if self.is_labels else y[:, list(self.columns)].astype(dtype)

    def measured(self, score: float, rows: float, loss: float, of: str) -> dict[str, float | None]:
        """Return loss and accuracy, or loss, RMSE and (of test rows) R2; `score`: how many are right, or their squared errors. None: not measured."""
        known = bool(rows) and math.isfinite(loss)
        found: dict[str, float | None] = {f"{of}_loss": loss / rows if known else None}
        if self.targets is None:
            return found | {f"{of}_accuracy": score / rows if known else None}
        quality = self.targets.quality(score, rows) if known else {"test_rmse": None, "test_r2": None}
        return found | (quality if of == "test" else {f"{of}_rmse": quality["test_rmse"]})

    def mapping(self) -> dict[str, Any]:
        """Return what JSON holds; the scaling of targets lies with the weights."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        return {"name": self.name, "columns": self.columns, "names": self.names, "n_outputs": self.n_outputs, "classes": self.classes, "class_weights": weights}

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any]) -> Learnt:
        """Return what `mapping` describes; amounts have yet to be given their scaling."""
        weights = None if found["class_weights"] is None else np.array(found["class_weights"], np.float64)
        return cls(found["name"], tuple(found["columns"]), tuple(found["names"]), found["n_outputs"], tuple(found["classes"]), None, weights)


class Asked(NamedTuple):
    """What a net file says of a head: the labels that it learns, and whether its loss takes amounts (None: the data decide)."""

    name: str
    label: tuple[str | int, ...]
    amounts: bool | None


def fit(source: str, asked: Sequence[Asked], words: Sequence[list[str] | None], y: Array, train: Array, test: Array) -> tuple[Learnt, ...]:
    """Decide what each head learns, of all labels y (n, columns) float64, those that are trained on, and those tested on.

    `words`: the classes' names of columns that hold words. Words are classes, several columns amounts; of the rest the loss decides, and where it
    does not, a number that is not whole. UserError for what cannot be.
    """
    found: list[Learnt] = []
    at = 0
    for head in asked:
        columns, named = tuple(range(at, at + len(head.label))), tuple(map(str, head.label))
        at += len(columns)
        where = f"{source}, head '{head.name}'"
        spelt = [words[j] if j < len(words) else None for j in columns]
        if len(columns) > 1 and (any(spelt) or head.amounts is False):
            why = "its loss takes classes" if not any(spelt) else "one of them holds words"
            raise UserError(f"{where}: learns {len(columns)} columns, and {why}; give it one, and others a [[head]] of their own")
        amounts = head.amounts if head.amounts is not None else is_amount(y[:, columns[0]])
        if len(columns) > 1 or (amounts and not spelt[0]):
            own = list(columns)
            found.append(Learnt(head.name, columns, named, len(columns), (), Targets.fit(where, train[:, own], test[:, own])))
            continue
        labels = integer_labels(y[:, columns[0]], f"{where}, label {named[0]}")
        n = int(labels.max()) + 1
        if n > len(y):
            raise UserError(f"{where}: label {n - 1} means more classes than the {len(y)} rows; code the labels as 0..k-1")
        classes = tuple(spelt[0] or map(str, range(n)))
        found.append(Learnt(head.name, columns, named, len(classes), classes))
    return tuple(found)


def scaled(y: Array, heads: Sequence[Learnt]) -> Array:
    """Return y (n, columns) as it is trained on."""
    found: Array = y.copy()
    for of in heads:
        if of.targets is not None:
            found[:, list(of.columns)] = of.targets.scaled(y[:, list(of.columns)])
    return found


def check(y: Array, heads: Sequence[Learnt], source: str) -> None:
    """Refuse labels of later rows y (n, columns) that are none of the classes."""
    for of in heads:
        if of.is_labels:
            labels = integer_labels(y[:, of.columns[0]], f"{source}, head '{of.name}'")
            bad = labels >= of.n_outputs
            if bad.any():
                row = int(bad.argmax())
                raise UserError(f"{source}: label {labels[row]} in row {row} is unknown to head '{of.name}', which has {of.n_outputs} classes; correct the labels")


def picked(y: Array, label: Label, where: str) -> Array:
    """Return the columns of y, (n,) or (n, k), whose numbers `label` lists; all of it where it lists none."""
    if not isinstance(label, tuple) or not label:
        return y
    whole = y.reshape(len(y), -1)
    for number in label:
        if not isinstance(number, int) or not 0 <= number < whole.shape[1]:
            raise UserError(f"{where} has {whole.shape[1]} column(s), and label = {number!r} is none of them; give numbers from 0 to {whole.shape[1] - 1}")
    found: Array = whole[:, list(label) if len(label) > 1 else label[0]]  # type: ignore[index]
    return found
