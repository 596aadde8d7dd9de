"""Say what the kernels of layers that are cut over ranks mean. z: (m, n) float32 or float64, this rank's columns first to first + n of a whole.

y: int64 (m,), labels of all classes; sums: float64 (2, m), or (3, m) with label smoothing. Added over the ranks, largest and sums are those of the
whole rows: Shoeybi et al., Megatron-LM, 2019, section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml_kernels.dense.reference import kept

Array = np.ndarray[Any, Any]


def dropout_part(x: Array, ids: Array, key: Array, rate: float, first: int) -> None:
    """Compute in place what `dropout` makes of columns first to first + n of whole rows: x / (1 - rate) where kept, else 0."""
    x[...] = np.where(kept(ids, key, rate, x.shape[1], first), x * x.dtype.type(1 / (1 - rate)), x.dtype.type(0))


def embed_part(x: Array, passed: Array, columns: Array, starts: Array, first: int, table: Array, out: Array) -> None:
    """Compute what `embed` does where `table` holds rows first to first + len(table) of the whole one; the rows of others give 0."""
    k = len(passed)
    out[:, :k] = x[:, passed]
    rows = x[:, columns].astype(np.int64) + starts - first
    own = (rows >= 0) & (rows < len(table))
    found = np.zeros((*rows.shape, table.shape[1]), table.dtype)
    found[own] = table[rows[own]]
    out[:, k:] = found.reshape(len(x), len(columns) * table.shape[1])


def embed_part_backward(d: Array, x: Array, passed: Array, columns: Array, starts: Array, first: int, g: Array) -> None:
    """Compute g = 0, then add the gradient d of the whole output to the rows of g, first to first + len(g) of the whole table."""
    g[...] = 0
    rows = x[:, columns].astype(np.int64) + starts - first
    own = (rows >= 0) & (rows < len(g))
    np.add.at(g, rows[own], d[:, len(passed) :].reshape(*rows.shape, g.shape[1])[own])


def largest_of_rows(z: Array, largest: Array) -> None:
    """Compute largest[i] = the largest of row i, NaN left out; -inf for no columns. largest: (m,), of the type of z."""
    largest[...] = np.where(np.isnan(z), z.dtype.type(-np.inf), z).max(axis=1, initial=-np.inf)


def xent_part_sums(z: Array, y: Array, first: int, largest: Array, weights: Array, sums: Array) -> None:
    """Compute z = exp(z - largest) and this rank's parts of its sum, of z - largest at the label, and, where asked, of weights (z - largest).

    largest: (m,), over the columns of all ranks; weights: of all classes.
    """
    z -= largest[:, None]
    labels = y - first
    own = np.nonzero((labels >= 0) & (labels < z.shape[1]))[0]
    sums[1] = 0
    sums[1, own] = z[own, labels[own]]
    if len(sums) > 2:
        np.sum(weights[first : first + z.shape[1]] * z, axis=1, out=sums[2])
    np.exp(z, out=z)
    np.sum(z, axis=1, out=sums[0])


def xent_part(z: Array, y: Array, first: int, sums: Array, weights: Array, smoothing: float, scale: float) -> float:
    """Return the loss of `weighted_xent` over whole rows, from sums over all ranks, and leave this rank's columns of its gradient in z.

    z: as `xent_part_sums` leaves it; weights: of all classes, as ones for the plain loss. With smoothing, sums are (3, m).
    """
    spread = smoothing / max(len(weights), 1)
    own = (1 - smoothing) * weights[y].astype(np.float64)
    mass = own + spread * float(np.sum(weights, dtype=np.float64))
    z *= (scale * mass / sums[0]).astype(z.dtype)[:, None]
    z -= z.dtype.type(scale * spread) * weights[first : first + z.shape[1]]
    labels = y - first
    at = np.nonzero((labels >= 0) & (labels < z.shape[1]))[0]
    z[at, labels[at]] -= (scale * own[at]).astype(z.dtype)
    loss = float(np.sum(mass * np.log(sums[0]) - own * sums[1]))
    return loss - spread * float(np.sum(sums[2])) if len(sums) > 2 else loss
