"""Lay layer normalisation over threads, a block a row; its meaning is in reference.py."""

from __future__ import annotations

from typing import Any

from mpidml_kernels.launch import BLOCK, COLUMNS, MOST_BLOCKS, ROWS, Gpu, row_block


def layer_norm(gpu: Gpu, x: Any, gain: Any, bias: Any, eps: float, stats: Any, out: Any) -> None:
    """Compute out = gain (x - mean) / sqrt(variance + eps) + bias by rows; keep mean and 1 / deviation in `stats`."""
    m, n = x.shape
    if m:
        gpu.launch("norm", "layer_norm", m, row_block(n), x, gain, bias, eps, stats, out, n)


def layer_norm_backward(gpu: Gpu, d: Any, x: Any, stats: Any, gain: Any, dgain: Any, dbias: Any) -> None:
    """Turn d into the gradient of x in place: one pass over the rows, by as many threads as the device holds at once, then sums of what each block has."""
    m, n = d.shape
    if not n:
        return
    k = max(1, min(m, MOST_BLOCKS * BLOCK // row_block(n)))
    gains, biases = (gpu.scratch(name, k * n, d.dtype.str[1:]) for name in ("gains", "biases"))
    gpu.launch("norm", "layer_norm_backward", k, row_block(n), d, x, stats, gain, gains, biases, m, n)
    for sums, out in ((gains, dgain), (biases, dbias)):
        gpu.launch("dense", "linear_backward", (-(-n // COLUMNS), 1), (COLUMNS, ROWS), sums, out, k, n)
