"""Say what the kernels of sparse rows mean.

Row i has the values[j] in the columns[j] for starts[i] <= j < starts[i + 1]: starts int64 (m + 1,), columns int32, each in its range, not checked here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def csr_take(
    starts: Array, columns: Array, values: Array, rows: Array, number: Array, ids: Array, out_starts: Array, out_columns: Array, out_values: Array
) -> int:
    """Copy the listed rows, with the columns numbered 0, 1, ... as they come; write to ids[number] which column has the number, and return how many have one.

    rows: int64 (m,); number: int32, -1 for each column, before and after; ids: int64, with room for every column that occurs.
    """
    k = at = 0
    out_starts[0] = 0
    for i, row in enumerate(rows):
        for j in range(starts[row], starts[row + 1]):
            column = columns[j]
            if number[column] < 0:
                number[column], ids[k] = k, column
                k += 1
            out_columns[at], out_values[at] = number[column], values[j]
            at += 1
        out_starts[i + 1] = at
    number[ids[:k]] = -1
    return k


def csr_matmul(starts: Array, columns: Array, values: Array, table: Array, out: Array) -> None:
    """Compute out[i] = sum of values[j] table[columns[j]] over row i, in the order of its values; table (columns, n), out (m, n)."""
    for i in range(len(out)):
        out[i] = 0
        for j in range(starts[i], starts[i + 1]):
            out[i] += values[j] * table[columns[j]]


def csr_matmul_backward(starts: Array, columns: Array, values: Array, d: Array, g: Array) -> None:
    """Add to g[columns[j]] values[j] d[i], row by row; d: the gradient of `csr_matmul`'s output, g (columns, n): that of its table."""
    for i in range(len(d)):
        lo, hi = starts[i], starts[i + 1]
        np.add.at(g, columns[lo:hi], values[lo:hi, None] * d[i])
