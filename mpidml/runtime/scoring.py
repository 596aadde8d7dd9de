"""Score rows in fixed blocks of global rows, so that a model is found as good on any number of ranks, to the last bit.

    test rows   | block 0 | block 1 | block 2 | rest |      part 0 of 2 has blocks 0 and 1, part 1 the others

The last bits of a product of matrices depend on its shape, so a block is computed with the same shape whoever has it; what blocks sum up to is summed
exactly (Shewchuk 1997, `math.fsum`), so no order shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.role import Array
from mpidml.data.targets import Targets
from mpidml.nn.network import Network

BLOCK = 64
"""Rows in a block: few, so that a small test set has a share for each rank."""


class Scores(NamedTuple):
    """Of each block the sum of the losses and the score: rows that are right, or in a regression the sum of squared errors. Losses are as in `Training`."""

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    n_rows: int


def share(n: int, part: int, n_parts: int) -> tuple[int, int]:
    """Return rows [lo, hi) of a part: whole blocks (the last may be short), evenly shared; lo == hi where blocks are too few."""
    n_blocks = -(-n // BLOCK)
    return min(n, n_blocks * part // n_parts * BLOCK), min(n, n_blocks * (part + 1) // n_parts * BLOCK)


def score(net: Network, w: Array, x: Any, y: Array, targets: Targets | None, outputs: Array | None = None) -> Scores:
    """Score rows that begin at a block's first row and are whole blocks but for the last; `outputs` (n, n_outputs) is filled where it is given."""
    if targets is not None and outputs is None:
        outputs = np.empty((len(x), net.n_outputs), net.dtype)
    found = net.scored(w, x, y, BLOCK, outputs) if len(x) else []
    factor = loss_factor(net, targets)
    scores = [float(n_correct) for _, n_correct in found]
    if targets is not None and outputs is not None:
        scores = [targets.squared_errors(outputs[lo : lo + BLOCK], y[lo : lo + BLOCK]) for lo in range(0, len(x), BLOCK)]
    return Scores(tuple(loss * factor for loss, _ in found), tuple(scores), len(x))


def total(parts: Iterable[Scores]) -> tuple[float, float, int]:
    """Return the sum of the losses, the score and the number of rows of all parts, in whatever order they come."""
    parts = list(parts)
    return exact(loss for of in parts for loss in of.losses), exact(score for of in parts for score in of.scores), sum(of.n_rows for of in parts)


def exact(values: Iterable[float]) -> float:
    """Return the correctly rounded sum; NaN where a value is not finite."""
    values = list(values)
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def loss_factor(net: Network, targets: Any) -> float:
    """Return what a loss of scaled targets is multiplied by to be in the unit of the targets; losses that are no squares stay as they are."""
    return 1.0 if targets is None or net.loss.kernel != "squared_error" else float(targets.loss_factor)
