"""Say what a loss is: the name of a kernel that sums it over rows and leaves its gradient in place, and what that kernel is given.

    cross_entropy    hinge:1.0    huber:1.0    squared_error    binary_cross_entropy
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from mpidml_kernels import LAWS
from numpy.typing import DTypeLike

from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.flat import Array

PACKAGE = "mpidml.nn.losses"
BALANCED = "balanced"


class Loss:
    """One loss; a plug-in file holds one. The sum over rows is a sum over any split of them: no term depends on another row.

    `from_values`: it reads targets (m, n_outputs), made of labels where the data have labels; else it reads labels int64 (m,).
    `any_amount`: these targets may be any numbers.
    `class_weights`: one factor a class, for the rows of that class; None means 1. A loss without them takes none.
    """

    from_values: ClassVar[bool] = False
    any_amount: ClassVar[bool] = False
    class_weights: Array | None

    @property
    def kernel(self) -> str:
        """The kernel's name; it is called as (outputs, labels or targets, *constants, scale)."""
        raise NotImplementedError

    def constants(self, n_outputs: int, dtype: DTypeLike) -> tuple[Any, ...]:
        """Return the kernel's arguments between the targets and the scale."""
        return ()

    def n_outputs(self, n_classes: int) -> int:
        """Return how many outputs the network needs to tell the classes apart; ValueError for a number of classes that the loss does not take."""
        return n_classes

    def check_targets(self, targets: Array) -> None:
        """Refuse targets (n, n_outputs) by a ValueError that says what does not fit."""
        if not self.from_values:
            raise ValueError(f"takes class labels, the targets are numbers ({targets.dtype}); use squared_error or huber")

    def fill(self, y: Array, targets: Array) -> None:
        """Make `targets` of the labels y: 1 in the label's column, else 0."""
        np.equal(y[:, None], np.arange(targets.shape[1]), out=targets, casting="unsafe")

    def n_correct(self, backend: Any, outputs: Array, labels: Array | None, targets: Array | None) -> int:
        """Count the rows whose largest output is at the label; none without labels."""
        return 0 if labels is None else int(backend.count_largest(outputs, labels))

    def decide(self, outputs: Array) -> Array:
        """Return the class of each row, int64 (n,): that of the largest output, the first of equals."""
        largest: Array = outputs.argmax(axis=1)
        return largest

    def probabilities(self, outputs: Array) -> Array | None:
        """Return float64 (n, classes), the probabilities that the loss makes of outputs; None where it makes none."""
        return None

    def margins(self, outputs: Array) -> Array:
        """Return by how much each class leads, float64 (n, classes), what puts rows in order for an ROC curve: its output over the largest other."""
        z: Array = outputs.astype(np.float64)
        best = z.argmax(axis=1)
        rows = np.arange(len(z))
        most = z[rows, best]
        z[rows, best] = -np.inf
        second = z.max(axis=1)
        z -= most[:, None]
        z[rows, best] = most - second
        return z

    def flops(self, m: int, n_outputs: int) -> int:
        """Count the kernel's operations."""
        return LAWS[self.kernel].flops(m, n_outputs)

    def factors(self, n_outputs: int, dtype: DTypeLike) -> Array:
        """Return the class weights as the kernels read them, 1 for each class where none were given."""
        return np.ones(n_outputs, dtype) if self.class_weights is None else np.ascontiguousarray(self.class_weights, dtype)


def make_loss(text: str, class_weights: Array | None = None, label_smoothing: float = 0.0) -> Loss:
    """Build the loss that `text` describes ("huber:0.5"); UserError for an option that this loss does not have."""
    loss = plugins.make(PACKAGE, text, class_weights=class_weights, label_smoothing=label_smoothing)
    if not isinstance(loss, Loss):
        raise UserError(f"loss '{text}': {type(loss).__name__} is not a loss; derive it from {PACKAGE}.base.Loss")
    for name, is_given in (("class_weights", class_weights is not None), ("label_smoothing", label_smoothing != 0)):
        if is_given and not hasattr(loss, name):
            raise UserError(f"--{name.replace('_', '-')}: does nothing in --loss {text}; leave it out, or use --loss cross_entropy")
    return loss


def parse_weights(text: str, labels: Array, n_classes: int) -> Array | None:
    """Read `--class-weights`: none for "", numbers as they are, "balanced" as n / (n_classes n_c), whose mean over the n labels is 1."""
    if not text:
        return None
    if text == BALANCED:
        counts = np.bincount(labels, minlength=n_classes)
        if not counts.all():
            raise UserError(f"--class-weights balanced: class {int(counts.argmin())} has no training rows to count; give the weights as a list")
        balanced: Array = len(labels) / (n_classes * counts.astype(np.float64))
        return balanced
    weights = numbers(text)
    if len(weights) != n_classes:
        raise UserError(f"--class-weights {text}: are {len(weights)} weight(s), the data have {n_classes} classes; give one for each class")
    return np.array(weights)


def numbers(text: str) -> list[float]:
    """Read the weights of a list; UserError for what is not a positive number."""
    values = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"--class-weights {text}: '{word.strip()}' is not a positive number; give 'balanced', or a weight for each class, as 1,2.5")
        values.append(value)
    return values


def number(name: str, value: object) -> float:
    """Return `value` as a float if it is positive and finite; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} = {value} is not a positive number; give one such as 1.0")
    return float(value)
