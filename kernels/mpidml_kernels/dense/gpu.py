"""Lay the kernels of fully connected layers over threads, and leave large products to cuBLAS; their meaning is in reference.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml_kernels.launch import BLOCK, COLUMNS, MOST_BLOCKS, ROWS, Gpu, blocks, tiles

SMALL = 1 << 26
"""Multiplications up to which a product is made by a kernel of ours: unlike cuBLAS's (by CuPy 14) it can be recorded. From where on cuBLAS gains more is not measured."""
ENOUGH_BLOCKS = MOST_BLOCKS // 4
LEAST_DEPTH = 128
"""Of a part of a product's sum."""


def matmul(gpu: Gpu, a: Any, b: Any, out: Any) -> None:
    """Compute out = a @ b; a and b may be transposed views."""
    if not _small_product(gpu, a, b, out, adds=False):
        gpu.cupy.matmul(a, b, out=out)


def matmul_add(gpu: Gpu, a: Any, b: Any, out: Any) -> None:
    """Compute out += a @ b; where it is large, through room for the product."""
    if not _small_product(gpu, a, b, out, adds=True):
        product = gpu.scratch("product", out.size, out.dtype.str[1:])[: out.size]
        gpu.cupy.matmul(a, b, out=product.reshape(out.shape))
        gpu.launch("update", "add", blocks(out.size), BLOCK, out.reshape(-1), product, out.size)


def _small_product(gpu: Gpu, a: Any, b: Any, out: Any, adds: bool) -> bool:
    """Make a product that is small and tell so; a large one is left, and then nothing that it is part of can be recorded."""
    (m, k), n = a.shape, b.shape[1]
    turned = [not each.flags.c_contiguous for each in (a, b)]
    if m * k * n > SMALL or not all((each.T if of else each).flags.c_contiguous for each, of in zip((a, b, out), (*turned, False), strict=True)):
        gpu.no_recording("a product is large or of arrays with gaps, and CuPy does not record cuBLAS's")
        return False
    if out.size:
        given = (each.T if of else each for each, of in zip((a, b), turned, strict=True))
        n_tiles = -(-m // 32) * -(-n // 32)
        n_parts = max(1, min(k // LEAST_DEPTH, ENOUGH_BLOCKS // n_tiles))
        sums = out if n_parts == 1 else gpu.scratch("parts", n_parts * m * n, out.dtype.str[1:])
        gpu.launch("dense", "product", (n_tiles, n_parts), (COLUMNS, ROWS), *given, out, sums, m, k, n, *turned, adds)
        if sums is not out:
            gpu.launch("dense", "add_up_columns", blocks(m * n), BLOCK, sums, out, n_parts, m * n)
    return True


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
