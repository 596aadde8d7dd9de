"""Let one network learn several things: heads, each with layers and a loss of its own, over the output of a shared trunk.

    x -> trunk -+-> layers of head 0 -> loss 0          the loss of the network: sum of weight x loss
                +-> layers of head 1 -> loss 1          gradient of the trunk: sum of weight x gradient

    parameters     | trunk | head 0 | head 1 |          so that the gradient becomes final from its end to its start
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Layer
from mpidml.nn.losses.base import Loss


class Head(NamedTuple):
    """What ends in one loss. `columns`: those of y that it learns (none: y is its own); labels, or targets that its loss reads.

    Its outputs are columns `lo` to `lo + n_outputs` of the network's.
    """

    name: str
    layers: tuple[Layer, ...]
    n_outputs: int
    loss: Loss
    weight: float = 1.0
    columns: tuple[int, ...] = ()
    is_labels: bool = True
    lo: int = 0

    def cut(self, outputs: Array) -> Array:
        """Return this head's columns of the network's outputs."""
        return outputs[:, self.lo : self.lo + self.n_outputs]

    def answers(self, y: Array) -> Array:
        """Return what it learns of y: labels int64 (n,), or targets (n, n_outputs)."""
        if not self.columns:
            return y
        return y[:, self.columns[0]].astype(np.int64) if self.is_labels else y[:, list(self.columns)]

    def judge(self, backend: Any, out: Array, answers: Array) -> tuple[float, int]:
        """Return the sum of the losses of outputs `out`, which are overwritten, and how many rows are right."""
        has_labels = not self.loss.from_values or (answers.ndim == 1 and not np.issubdtype(answers.dtype, np.floating))
        labels = np.ascontiguousarray(answers, np.int64) if has_labels else None
        targets = np.empty_like(out) if self.loss.from_values else None
        if targets is not None and labels is not None:
            self.loss.fill(labels, targets)
        elif targets is not None:
            targets[...] = answers.reshape(out.shape)
        n_correct = self.loss.n_correct(backend, out, labels, targets)
        kernel, constants = getattr(backend, self.loss.kernel), self.loss.constants(self.n_outputs, out.dtype)
        return float(kernel(out, labels if targets is None else targets, *constants, 1.0)), n_correct


class Answers:
    """Labels int64 (m,) of one head, and targets (m, n_outputs) where its loss reads values; filled before each pass."""

    def __init__(self, head: Head, y: Array, targets: Array | None) -> None:
        self.head, self.y, self.targets = head, y, targets

    @classmethod
    def of(cls, head: Head, m: int, dtype: Any, backend: Any) -> Answers:
        """Return room for m rows, where the arrays of `backend` lie."""
        return cls(head, backend.zeros(m, np.int64), backend.zeros((m, head.n_outputs), dtype) if head.loss.from_values else None)

    def first(self, m: int) -> Answers:
        """Return the same memory for its first m rows."""
        return Answers(self.head, self.y[:m], None if self.targets is None else self.targets[:m])

    @property
    def read(self) -> Array:
        """What the loss reads."""
        return self.y if self.targets is None else self.targets

    def load_labels(self) -> None:
        """Fill the targets from the labels; nothing to do for a loss that reads labels."""
        if self.targets is not None:
            self.head.loss.fill(self.y, self.targets)

    def load(self, y: Array) -> None:
        """Take this head's columns of y (m, columns) float64."""
        if self.head.is_labels:
            self.y[...] = y[:, self.head.columns[0]]
            self.load_labels()
        elif self.targets is not None:
            for j, column in enumerate(self.head.columns):
                self.targets[:, j] = y[:, column]
