"""Say what the row kernels mean. table: (rows, n); ids: int64 (m,) in [0, rows), not checked here; out, delta: (m, n)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def take(table: Array, ids: Array, out: Array) -> None:
    """Compute out[i] = table[ids[i]]."""
    out[...] = table[ids]


def add_rows(table: Array, ids: Array, delta: Array) -> None:
    """Compute table[ids[i]] += delta[i] for i in order: a repeated index accumulates, and always to the same bits."""
    np.add.at(table, ids, delta)
