"""Say how good predictions are: what counts of right and wrong rows tell of each class, and how well scores put rows in order.

    precision    of the rows that were called c, the share that are c        recall    of the rows that are c, the share that were called so
    ROC AUC      the share of pairs (one row that is c, one that is not) in which the first has the larger score; a tie counts half

The last is the Mann-Whitney statistic over the number of pairs (Hanley, McNeil, Radiology 143, 1982).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
AVERAGED = ("precision", "recall", "f1")


class ClassQuality(NamedTuple):
    """What is told of one class; `calls`: rows that were called so. A share of no rows is 0, an AUC without rows of both kinds None."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    calls: int
    roc_auc: float | None


def of_classes(y: Array, called: Array, names: Sequence[str], aucs: Sequence[float | None]) -> list[ClassQuality]:
    """Return the quality of each class, of labels y int64 (n,) and what the rows were called int64 (n,)."""
    k = len(names)
    support, calls, right = np.bincount(y, minlength=k), np.bincount(called, minlength=k), np.bincount(y[y == called], minlength=k)
    return [
        ClassQuality(name, _share(r, c), _share(r, s), _share(2 * r, s + c), s, c, auc)
        for name, s, c, r, auc in zip(names, support.tolist(), calls.tolist(), right.tolist(), aucs, strict=True)
    ]


def means(classes: Sequence[ClassQuality]) -> dict[str, dict[str, float]]:
    """Return the macro mean (each class that stands in the data or was called counts alike) and the mean weighted by support."""
    shown = [of for of in classes if of.support or of.calls]
    n = sum(of.support for of in classes)
    macro = {name: math.fsum(getattr(of, name) for of in shown) / len(shown) for name in AVERAGED}
    weighted = {name: math.fsum(getattr(of, name) * of.support for of in classes) / n if n else 0.0 for name in AVERAGED}
    return {"macro": macro, "weighted": weighted}


def confusion(y: Array, called: Array, k: int) -> Array:
    """Return how many rows of class i (a row of the table) were called j (a column), int64 (k, k)."""
    table: Array = np.bincount(y * k + called, minlength=k * k).reshape(k, k)
    return table


def confused(y: Array, called: Array, n: int) -> list[tuple[int, int, int]]:
    """Return the n commonest mistakes: (class, what it was called, how many rows), the commonest first."""
    wrong = y != called
    pairs, counts = np.unique(np.stack([y[wrong], called[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:n]
    return [(int(pairs[0, i]), int(pairs[1, i]), int(counts[i])) for i in order]


def auc(is_class: Array, scores: Array) -> float | None:
    """Return the area under the ROC curve of scores (n,) for rows that are of the class, bool (n,); None where all are or none is."""
    n, positives = len(scores), int(is_class.sum())
    if positives in (0, n):
        return None
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of equal scores the mean of theirs, from 1
    return float((ranks[group[is_class]].sum() - positives * (positives + 1) / 2) / (positives * (n - positives)))


def roc(is_class: Array, scores: Array) -> tuple[Array, Array]:
    """Return the ROC curve: share of the others (x) and of the class's rows (y) at or above each score, from (0, 0) to (1, 1); equal scores are one step."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits, falls = np.cumsum(is_class[order])[ends], np.cumsum(~is_class[order])[ends]
    return np.concatenate([[0.0], falls / max(falls[-1], 1)]), np.concatenate([[0.0], hits / max(hits[-1], 1)])


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
