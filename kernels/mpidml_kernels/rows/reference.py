"""Say what the row kernels mean. table: (rows, n); ids: int64 (m,) in [0, rows), not checked here; out, rows, delta: (m, n)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def take(table: Array, ids: Array, out: Array) -> None:
    """Compute out[i] = table[ids[i]]."""
    out[...] = table[ids]


def put_rows(table: Array, ids: Array, rows: Array) -> None:
    """Compute table[ids[i]] = rows[i]; no index comes twice."""
    table[ids] = rows


def add_rows(table: Array, ids: Array, delta: Array) -> None:
    """Compute table[ids[i]] += delta[i] for i in order: a repeated index accumulates, and always to the same bits."""
    np.add.at(table, ids, delta)


def embed(x: Array, passed: Array, columns: Array, starts: Array, table: Array, out: Array) -> None:
    """Compute out[i] = x[i, passed], then for each c the row starts[c] + x[i, columns[c]] of `table`.

    x: (m, features), whose `columns` hold whole numbers; the rows of column c begin at starts[c]. passed, columns, starts: int64.
    """
    k = len(passed)
    out[:, :k] = x[:, passed]
    out[:, k:] = table[x[:, columns].astype(np.int64) + starts].reshape(len(x), len(columns) * table.shape[1])


def embed_backward(d: Array, x: Array, passed: Array, columns: Array, starts: Array, g: Array) -> None:
    """Compute g = 0, then add the gradient d of `embed`'s output to the rows of the table that it read, in the order of rows and columns."""
    g[...] = 0
    np.add.at(g, x[:, columns].astype(np.int64) + starts, d[:, len(passed) :].reshape(len(x), len(columns), g.shape[1]))
