"""Fit the scaling of features across ranks with the same bits at any number of ranks.

Rows are summed in fixed blocks of global rows, whoever holds them; the blocks are then combined in block order:

    rank 0: | block 0 | block 1 |   rank 1: | block 2 | rest |   ->   gathered: block 0, 1, 2, 3   ->   one Scaler on every rank
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidml.core.errors import UserError, nearest

Array = np.ndarray[Any, Any]
BLOCK = 1024
"""Rows in a block."""
PIECE_NBYTES = 1 << 20
KINDS = ("none", "standard", "minmax", "maxabs")
KEEP_ZEROS = ("none", "maxabs")
"""Kinds under which zero stays zero, so that sparse rows stay sparse."""
_COUNT, _MEAN, _SQUARES, _LEAST, _MOST = range(5)


def block_range(n: int, rank: int, size: int) -> tuple[int, int]:
    """Return the rows [lo, hi) of `rank` out of `size`: whole blocks (the last may be short), evenly shared; lo == hi where blocks are too few."""
    n_blocks = -(-n // BLOCK)
    return min(n, n_blocks * rank // size * BLOCK), min(n, n_blocks * (rank + 1) // size * BLOCK)


def block_sums(x: Array, lo: int, hi: int, dtype: Any = np.float64) -> Array:
    """Sum up the blocks that start in [lo, hi): (n_blocks, 5, features) of count, mean, sum of squared deviations, least and largest value.

    x is (n, features) in global row numbers; lo and hi come from `block_range`. Gathered in rank order along axis 0, the blocks of all ranks
    are those of one rank, bit for bit. Deviations are taken from the block's own mean, so that large offsets cost no digits.
    Costs two passes over a block, and a copy of a block or, where rows are wide, of `PIECE_NBYTES` of it: columns of several features are summed
    row by row, so pieces change no bit.
    """
    starts = range(lo, hi, BLOCK)
    width = x.shape[1]
    step = BLOCK if width == 1 else rows_in_piece(width * np.dtype(dtype).itemsize)
    blocks = np.empty((len(starts), 5, width), dtype=dtype)
    for block, start in zip(blocks, starts, strict=True):
        end = min(start + BLOCK, len(x))
        pieces = range(start, end, step)

        def rows_at(at: int, end: int = end) -> Array:
            return np.array(x[at : min(at + step, end)], dtype, order="C")

        rows = rows_at(start)
        total, least, most = rows.sum(axis=0), rows.min(axis=0), rows.max(axis=0)
        for at in pieces[1:]:
            rows = rows_at(at)
            total = np.vstack([total, rows]).sum(axis=0)
            least, most = np.minimum(least, rows.min(axis=0)), np.maximum(most, rows.max(axis=0))
        block[_COUNT], block[_LEAST], block[_MOST] = end - start, least, most
        block[_MEAN] = total / (end - start)
        total = None
        for at in pieces:
            rows = rows if len(pieces) == 1 else rows_at(at)
            rows -= block[_MEAN]
            np.multiply(rows, rows, out=rows)
            total = rows.sum(axis=0) if total is None else np.vstack([total, rows]).sum(axis=0)
        block[_SQUARES] = total
    return blocks


def rows_in_piece(row_nbytes: int) -> int:
    """Return how many rows of a block are looked at together."""
    return max(1, min(BLOCK, PIECE_NBYTES // row_nbytes))


class Scaler:
    """Map each feature to (x - offset) * factor; offset and factor are float64 (features,)."""

    def __init__(self, offset: Array, factor: Array) -> None:
        self.offset, self.factor = offset, factor

    @classmethod
    def fit(cls, blocks: Array, kind: str) -> Scaler:
        """Fit to ALL blocks, in block order: "standard" (mean 0, variance 1), "minmax" (0 to 1), "maxabs" (largest absolute value 1) or "none".

        Constant columns get divisor 1, under "maxabs" those of zeros.

        Means and squared deviations are merged pairwise (Chan, Golub and LeVeque 1979). UserError for an unknown kind.
        """
        if kind not in KINDS:
            raise UserError(f"scaling: there is no '{kind}'; {nearest(kind, KINDS)}")
        if len(blocks) == 0:
            raise ValueError("scaling: there are no blocks to fit to")
        n_features = blocks.shape[2]
        if kind == "none":
            return cls(np.zeros(n_features), np.ones(n_features))
        if kind == "maxabs":
            return cls.of_most(np.abs(blocks[:, _LEAST:]).max(axis=(0, 1)).astype(np.float64))
        count, mean, squares = 0.0, np.zeros(n_features), np.zeros(n_features)
        for block in blocks:
            more, away = block[_COUNT, 0], block[_MEAN] - mean
            squares += block[_SQUARES] + away * away * (count * more / (count + more))
            mean += away * (more / (count + more))
            count += more
        least, most = blocks[:, _LEAST].min(axis=0), blocks[:, _MOST].max(axis=0)
        offset, divisor = (mean, np.sqrt(squares / count)) if kind == "standard" else (least, most - least)
        # a constant column is known by its range: its squared deviations may be rounding, not 0
        is_constant = (least == most) | (divisor <= np.finfo(np.float64).tiny)
        return cls(np.where(least == most, least, offset).astype(np.float64), (1 / np.where(is_constant, 1, divisor)).astype(np.float64))

    @classmethod
    def of_most(cls, most: Array) -> Scaler:
        """Return the scaler that divides each feature by its largest absolute value, float64 (features,); 0 is left alone."""
        return cls(np.zeros(len(most)), 1 / np.where(most <= np.finfo(np.float64).tiny, 1, most))

    def sparing(self, columns: Sequence[int]) -> Scaler:
        """Return this scaler without its effect on `columns`, which hold codes of categories."""
        spared = np.isin(np.arange(len(self.offset)), columns)
        return Scaler(np.where(spared, 0.0, self.offset), np.where(spared, 1.0, self.factor))

    def apply(self, x: Array, out: Array) -> None:
        """Write the scaled rows of x (n, features) to `out` (same shape, any float dtype); computes in float64, a block of rows at a time."""
        buffer = np.empty((min(len(x), BLOCK), x.shape[1]))
        for start in range(0, len(x), BLOCK):
            rows = buffer[: len(x) - start]
            np.subtract(x[start : start + BLOCK], self.offset, out=rows)
            np.multiply(rows, self.factor, out=out[start : start + BLOCK], casting="same_kind")

    def state(self) -> dict[str, Array]:
        """Return the scaler as named arrays."""
        return {"offset": self.offset, "factor": self.factor}

    @classmethod
    def from_state(cls, state: dict[str, Array]) -> Scaler:
        """Return the scaler that `state` describes."""
        return cls(np.asarray(state["offset"], dtype=np.float64), np.asarray(state["factor"], dtype=np.float64))
