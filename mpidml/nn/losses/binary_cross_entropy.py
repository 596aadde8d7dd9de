"""Lose -t log s - (1 - t) log(1 - s) at each output, s = 1 / (1 + exp(-z)): each output is a yes or no of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mpidml.core.flat import Array
from mpidml.nn.losses.base import Loss


class BinaryCrossEntropy(Loss):
    """One output for labels 0 and 1, or several for targets (n, k) of 0 and 1; a row is right when all its outputs are on the right side of 0."""

    from_values: ClassVar[bool] = True

    @property
    def kernel(self) -> str:
        """binary_xent."""
        return "binary_xent"

    def n_outputs(self, n_classes: int) -> int:
        """Return 1."""
        if n_classes > 2:
            raise ValueError(f"takes labels 0 and 1, the data have {n_classes} classes; use cross_entropy, or give targets of 0 and 1, one column a class")
        return 1

    def check_targets(self, targets: Array) -> None:
        """Take 0 and 1 alone."""
        bad = (targets != 0) & (targets != 1)
        if bad.any():
            row = int(np.argwhere(bad)[0, 0])
            raise ValueError(f"takes targets of 0 and 1, row {row} holds {targets[bad].flat[0]:g}; use squared_error or huber")

    def fill(self, y: Array, targets: Array) -> None:
        """Take the labels as they are."""
        targets[...] = y[:, None]

    def decide(self, outputs: Array) -> Array:
        """Return 1 where the output is above 0, else 0."""
        return (outputs[:, 0] > 0).astype(np.int64)

    def probabilities(self, outputs: Array) -> Array:
        """Return 1 - s and s."""
        z = outputs[:, :1].astype(np.float64)
        found: Array = 1 / (1 + np.exp(np.clip(np.concatenate([z, -z], axis=1), -700, 700)))
        return found

    def margins(self, outputs: Array) -> Array:
        """Return -z and z, the logs of p / (1 - p)."""
        z = outputs[:, :1].astype(np.float64)
        return np.concatenate([-z, z], axis=1)

    def n_correct(self, backend: Any, outputs: Array, labels: Array | None, targets: Array | None) -> int:
        """Count the rows whose outputs are all above 0 where the target is 1 and nowhere else."""
        return int(backend.count_signs(outputs, targets))
