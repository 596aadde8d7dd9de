"""Lay the kernels of fully connected layers over threads, and leave products to cuBLAS; their meaning is in reference.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml_kernels.launch import BLOCK, COLUMNS, ROWS, Gpu, blocks, tiles


def matmul(gpu: Gpu, a: Any, b: Any, out: Any) -> None:
    """Compute out = a @ b; a and b may be transposed views."""
    gpu.cupy.matmul(a, b, out=out)


def matmul_add(gpu: Gpu, a: Any, b: Any, out: Any) -> None:
    """Compute out += a @ b, through room for the product."""
    if out.size:
        product = gpu.scratch("product", out.size, out.dtype.str[1:])[: out.size]
        gpu.cupy.matmul(a, b, out=product.reshape(out.shape))
        gpu.launch("update", "add", blocks(out.size), BLOCK, out.reshape(-1), product, out.size)


def _bias(name: str) -> Callable[..., None]:
    def go(gpu: Gpu, z: Any, *rest: Any) -> None:
        if z.size:
            gpu.launch("dense", name, tiles(*z.shape), (COLUMNS, ROWS), z, *rest, *z.shape)

    return go


def _backward(name: str) -> Callable[..., None]:
    def go(gpu: Gpu, d: Any, a: Any, gb: Any) -> None:
        m, n = d.shape
        if not n:
            return
        grid = tiles(m, n)
        sums = gb if grid[1] == 1 else gpu.scratch("columns", grid[1] * n, gb.dtype.str[1:])
        gpu.launch("dense", name, grid, (COLUMNS, ROWS), *((d,) if name == "linear_backward" else (d, a)), sums, m, n)
        if sums is not gb:
            gpu.launch("dense", "add_up_columns", blocks(n), BLOCK, sums, gb, grid[1], n)

    return go


bias_linear = _bias("bias_linear")
bias_relu = _bias("bias_relu")
bias_tanh = _bias("bias_tanh")
bias_sigmoid = _bias("bias_sigmoid")
bias_leaky_relu = _bias("bias_leaky_relu")
bias_softplus = _bias("bias_softplus")
bias_gelu = _bias("bias_gelu")
linear_backward = _backward("linear_backward")
relu_backward = _backward("relu_backward")
tanh_backward = _backward("tanh_backward")
sigmoid_backward = _backward("sigmoid_backward")
leaky_relu_backward = _backward("leaky_relu_backward")
softplus_backward = _backward("softplus_backward")
gelu_backward = _backward("gelu_backward")


def dropout(gpu: Gpu, x: Any, ids: Any, key: Any, rate: float, out: Any) -> None:
    """Compute out = x / (1 - rate) where kept, else 0."""
    if x.size:
        gpu.launch("dense", "dropout", tiles(*x.shape), (COLUMNS, ROWS), x, ids, key, rate, out, *x.shape)


def dropout_in_place(gpu: Gpu, x: Any, ids: Any, key: Any, rate: float) -> None:
    """Compute `dropout` of x into x."""
    if x.size:
        gpu.launch("dense", "dropout_in_place", tiles(*x.shape), (COLUMNS, ROWS), x, ids, key, rate, *x.shape)
