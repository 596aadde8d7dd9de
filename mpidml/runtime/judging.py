"""Say of outputs and what is true how good they are, as evaluation.json has it: of classes, or of amounts in their own unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core import quality
from mpidml.core.role import Array
from mpidml.data.learnt import Learnt
from mpidml.data.targets import Targets
from mpidml.runtime.scoring import BLOCK, exact

MOST_CLASSES = 100
"""A table of confusion of more classes is not written, only its largest entries."""
N_CONFUSED = 20


class Thing(NamedTuple):
    """One thing that a network has learnt, and what it says of some rows: `name` is that of a head, "" where it is the only thing.

    loss: the loss object; names: those of classes, or of targets; y: labels int64 (n,), or scaled targets (n, k), whose scaling is `targets`.
    """

    name: str
    loss: Any
    names: Sequence[str]
    y: Array
    outputs: Array
    targets: Targets | None

    def judged(self, loss: float, score: float) -> dict[str, Any]:
        """Return what evaluation.json holds of it; `loss` and `score` as summed up by `scoring`."""
        if self.targets is None:
            return {"loss": loss / len(self.y)} | classified(self.loss, self.names, self.y, self.outputs, int(score))
        return {"loss": loss / len(self.y)} | regressed(self.targets, self.names, self.y, self.outputs, score)


def things(saved: Any, y: Array, targets: Targets | None, heads: Sequence[Learnt], outputs: Array) -> list[Thing]:
    """Return what a saved run has learnt, with y and outputs (n, n_outputs) of rows."""
    if not heads:
        return [Thing("", saved.net.loss, saved.known.classes or saved.known.target_names, y, outputs, targets)]
    return [
        Thing(of.name, head.loss, of.classes or of.target_names, of.answers(y, saved.net.dtype), head.cut(outputs), of.targets)
        for head, of in zip(saved.net.heads, heads, strict=True)
    ]


def classified(loss: Any, names: Sequence[str], y: Array, outputs: Array, n_right: int) -> dict[str, Any]:
    """Return what is told of outputs (n, n_outputs) that name classes, of labels y int64 (n,)."""
    called, margins = loss.decide(outputs), loss.margins(outputs)
    aucs = [quality.auc(y == c, margins[:, c]) for c in range(len(names))]
    classes = quality.of_classes(y, called, names, aucs)
    known = [auc for auc in aucs if auc is not None]
    worst = [{"class": names[i], "called": names[j], "rows": count} for i, j, count in quality.confused(y, called, N_CONFUSED)]
    return {
        "task": "classify",
        "right": n_right,
        "accuracy": n_right / len(y),
        "roc_auc": (aucs[1] if len(names) == 2 else sum(known) / len(known)) if known else None,
        **quality.means(classes),
        "classes": [of._asdict() for of in classes],
        "confusion": quality.confusion(y, called, len(names)).tolist() if len(names) <= MOST_CLASSES else None,
        "most_confused": worst,
    }


def regressed(targets: Targets, names: Sequence[str], y: Array, outputs: Array, squared_errors: float) -> dict[str, Any]:
    """Return what is told of outputs (n, k) that foretell amounts, for scaled targets y (n, k); of several targets also of each."""
    found = targets.quality(squared_errors, len(y))
    off = np.abs(np.subtract(outputs, y, dtype=np.float64)) * targets.scale
    mae = _exact_sum(off) / off.size
    each = [{"target": name, **_of_one(off[:, j], y[:, j] * targets.scale)} for j, name in enumerate(names)] if len(names) > 1 else []
    return {"task": "regress", "targets": outputs.shape[1], "rmse": found["test_rmse"], "mae": mae, "r2": found["test_r2"], **({"each": each} if each else {})}


def _of_one(off: Array, y: Array) -> dict[str, float | None]:
    """Return the measures of one column, of how far off its predictions are."""
    squares, spread = _exact_sum(np.square(off)), _exact_sum(np.square(y - y.mean()))
    return {"rmse": (squares / len(off)) ** 0.5, "mae": _exact_sum(off) / len(off), "r2": 1 - squares / spread if y.min() < y.max() else None}


def _exact_sum(values: Array) -> float:
    return exact(values[lo : lo + BLOCK].sum() for lo in range(0, len(values), BLOCK))


def drawn(result: dict[str, Any]) -> Sequence[int]:
    """Choose the classes whose ROC curves are drawn: of two the second, of more those whose curve is lowest."""
    aucs = {c: of["roc_auc"] for c, of in enumerate(result["classes"]) if of["roc_auc"] is not None}
    if len(result["classes"]) == 2:
        return [1] if 1 in aucs else []
    return sorted(aucs, key=lambda c: aucs[c])[:5]
