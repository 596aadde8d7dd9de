"""Lay the kernels of layers that are cut over ranks over threads; their meaning is in reference.py."""

from __future__ import annotations

from typing import Any

from mpidml_kernels.launch import COLUMNS, ROWS, Gpu, row_block, tiles
from mpidml_kernels.rows.gpu import embed_backward_of as embed_part_backward
from mpidml_kernels.rows.gpu import embed_of as embed_part

__all__ = ["dropout_part", "embed_part", "embed_part_backward", "largest_of_rows", "xent_part", "xent_part_sums"]


def dropout_part(gpu: Gpu, x: Any, ids: Any, key: Any, rate: float, first: int) -> None:
    """Compute in place what `dropout` makes of columns first to first + n of whole rows."""
    if x.size:
        gpu.launch("split", "dropout_part", tiles(*x.shape), (COLUMNS, ROWS), x, ids, key, rate, first, *x.shape)


def largest_of_rows(gpu: Gpu, z: Any, largest: Any) -> None:
    """Compute largest[i] = the largest of row i, NaN left out; -inf for no columns."""
    m, n = z.shape
    if m:
        gpu.launch("split", "largest_of_rows", m, row_block(n), z, largest, n)


def xent_part_sums(gpu: Gpu, z: Any, y: Any, first: int, largest: Any, weights: Any, sums: Any) -> None:
    """Compute z = exp(z - largest) and this rank's parts of its sum, of z - largest at the label, and, where asked, of weights (z - largest)."""
    m, n = z.shape
    if m:
        gpu.launch("split", "xent_part_sums", m, row_block(n), z, y, first, largest, weights, sums, len(sums), m, n)


def xent_part(gpu: Gpu, z: Any, y: Any, first: int, sums: Any, weights: Any, smoothing: float, scale: float) -> float:
    """Return the loss of `weighted_xent` over whole rows, and leave this rank's columns of its gradient in z. Waits for the device."""
    m, n = z.shape
    if not m:
        return 0.0
    losses, total, spread = gpu.scratch("sums", m, "f8"), gpu.scratch("total_weight", 1, "f8"), smoothing / max(weights.size, 1)
    gpu.launch("split", "sum_weights", 1, 1024, weights, total, weights.size)
    gpu.launch("split", "xent_part", m, row_block(n), z, y, first, sums, len(sums), weights, total, smoothing, spread, scale, losses, m, n)
    return gpu.total(losses, m)
