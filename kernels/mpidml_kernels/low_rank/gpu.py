"""Lay the kernels of low-rank products over threads; their meaning is in reference.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml_kernels.launch import BLOCK, COLUMNS, ROWS, Gpu, blocks, tiles

MOST_BLOCKS = 264
"""Of a kernel each of whose blocks reads what all have found: 2 for each multiprocessor of the largest GPU of today."""


def orthonormalise(gpu: Gpu, p: Any) -> None:
    """Make the rows orthonormal, each with all threads: four launches a row, and what blocks have found stays on the device."""
    k, m = p.shape
    if not p.size:
        return
    n_blocks, real = min(blocks(m), MOST_BLOCKS), p.dtype.str[1:]
    given, once, twice = (gpu.scratch(f"products {name}", k * n_blocks, real) for name in ("given", "once", "twice"))
    rounding = 100 * float(np.finfo(p.dtype).eps)
    for i in range(k):
        gpu.launch("low_rank", "products_of_row", n_blocks, BLOCK, p, given, i, m)
        gpu.launch("low_rank", "take_parts", n_blocks, BLOCK, p, given, once, i, m)
        gpu.launch("low_rank", "take_parts", n_blocks, BLOCK, p, once, twice, i, m)
        own = slice(i * n_blocks, (i + 1) * n_blocks)
        gpu.launch("low_rank", "make_unit", n_blocks, BLOCK, p, given[own], twice[own], rounding, n_blocks, i, m)


def add_product(gpu: Gpu, p: Any, q: Any, sign: float, v: Any) -> None:
    """Compute v += sign p^T q."""
    if v.size:
        gpu.launch("low_rank", "add_product", tiles(*v.shape), (COLUMNS, ROWS), p, q, sign, v, len(p), *v.shape)
