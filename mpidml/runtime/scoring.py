"""Score rows in fixed blocks of global rows, so that a model is found as good on any number of ranks, to the last bit.

    test rows   | block 0 | block 1 | block 2 | rest |      part 0 of 2 has blocks 0 and 1, part 1 the others

The last bits of a product of matrices depend on its shape and on the number of BLAS's threads, so a block is computed with the same shape, by one thread, whoever
has it; what blocks sum up to is summed exactly (Shewchuk 1997, `math.fsum`), so no order shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.role import Array
from mpidml.data.learnt import Learnt
from mpidml.data.targets import Targets
from mpidml.nn.network import Network
from mpidml.runtime.threads import one_thread

BLOCK = 64
"""Rows in a block: few, so that a small test set has a share for each rank."""


class Scores(NamedTuple):
    """Of each block the sum of the losses and the score: rows that are right, or in a regression the sum of squared errors. Losses are as in `Training`.

    Of several `heads`: the weighted sum of their losses, which are as they are trained, no score, and what each has.
    """

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    n_rows: int
    heads: tuple[Scores, ...] = ()


def share(n: int, part: int, n_parts: int) -> tuple[int, int]:
    """Return rows [lo, hi) of a part: whole blocks (the last may be short), evenly shared; lo == hi where blocks are too few."""
    n_blocks = -(-n // BLOCK)
    return min(n, n_blocks * part // n_parts * BLOCK), min(n, n_blocks * (part + 1) // n_parts * BLOCK)


def score(net: Network, w: Array, x: Any, y: Array, targets: Targets | None, outputs: Array | None = None, heads: Sequence[Learnt] = ()) -> Scores:
    """Score rows that begin at a block's first row and are whole blocks but for the last; `outputs` (n, n_outputs) is filled where it is given."""
    with one_thread():
        return _score(net, w, x, y, targets, outputs, heads)


def _score(net: Network, w: Array, x: Any, y: Array, targets: Targets | None, outputs: Array | None, heads: Sequence[Learnt]) -> Scores:
    if heads:
        return _of_heads(net, w, x, y, heads, np.empty((len(x), net.n_outputs), net.dtype) if outputs is None else outputs)
    if targets is not None and outputs is None:
        outputs = np.empty((len(x), net.n_outputs), net.dtype)
    found = [of[0] for of in net.scored(w, x, y, BLOCK, outputs)] if len(x) else []
    factor = loss_factor(net, targets)
    scores = [float(n_correct) for _, n_correct in found]
    if targets is not None and outputs is not None:
        scores = [targets.squared_errors(outputs[lo : lo + BLOCK], y[lo : lo + BLOCK]) for lo in range(0, len(x), BLOCK)]
    return Scores(tuple(loss * factor for loss, _ in found), tuple(scores), len(x))


def _of_heads(net: Network, w: Array, x: Array, y: Array, learnt: Sequence[Learnt], outputs: Array) -> Scores:
    found = net.scored(w, x, y, BLOCK, outputs) if len(x) else []
    each: list[Scores] = []
    for h, (head, of) in enumerate(zip(net.heads, learnt, strict=True)):
        scores = [float(block[h][1]) for block in found]
        if of.targets is not None:
            out, own = head.cut(outputs), of.answers(y, net.dtype)
            scores = [of.targets.squared_errors(out[lo : lo + BLOCK], own[lo : lo + BLOCK]) for lo in range(0, len(x), BLOCK)]
        each.append(Scores(tuple(block[h][0] for block in found), tuple(scores), len(x)))
    losses = tuple(sum(head.weight * loss for head, (loss, _) in zip(net.heads, block, strict=True)) for block in found)
    return Scores(losses, (), len(x), tuple(each))


def of_heads(parts: Iterable[Scores]) -> tuple[float, ...]:
    """Return loss and score of each of several heads, summed over all parts, one head after the other."""
    return tuple(value for each in zip(*(of.heads for of in parts), strict=True) for value in total(each)[:2])


def pairs(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return loss and score of each of several heads, of what `of_heads` returns."""
    return list(zip(values[::2], values[1::2], strict=True))


def n_of_heads(net: Network) -> int:
    """Return how many numbers of several heads `sums` and `rests` return."""
    return 4 * len(net.heads) if len(net.heads) > 1 else 0


def sums(of: Scores) -> tuple[float, ...]:
    """Return the sums of losses and scores, then those of each of several heads."""
    return tuple(exact(values) for values in _summed(of))


def rests(of: Scores) -> tuple[float, ...]:
    """Return what rounding has left of each of the `sums`: added exactly to those of others they show no bit of who scored which rows."""
    return tuple(exact((*values, -exact(values))) for values in _summed(of))


def _summed(of: Scores) -> list[tuple[float, ...]]:
    return [values for each in (of, *of.heads) for values in (each.losses, each.scores)]


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
