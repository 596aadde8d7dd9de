"""Lay the losses over threads, and add up what rows or blocks have found (`Gpu.total` says where to); their meaning is in reference.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml_kernels.launch import BLOCK, Gpu, blocks, row_block


def _of_rows(name: str) -> Callable[..., float]:
    """Return what launches a block a row."""

    def go(gpu: Gpu, z: Any, *rest: Any) -> float:
        m, n = z.shape
        if not z.size:
            return 0.0
        sums = gpu.scratch("sums", m, "f8")
        gpu.launch("loss", name, m, row_block(n), z, *rest, sums, n)
        return gpu.total(sums, m)

    return go


def _of_values(name: str) -> Callable[..., float]:
    """Return what launches blocks over all elements."""

    def go(gpu: Gpu, z: Any, *rest: Any) -> float:
        if not z.size:
            return 0.0
        n = blocks(z.size)
        sums = gpu.scratch("sums", n, "f8")
        gpu.launch("loss", name, n, BLOCK, z, *rest, sums, z.size)
        return gpu.total(sums, n)

    return go


def _count(name: str) -> Callable[..., int]:
    total = _of_rows(name)
    return lambda gpu, z, answers: int(total(gpu, z, answers))


softmax_xent = _of_rows("softmax_xent")
weighted_xent = _of_rows("weighted_xent")
hinge = _of_rows("hinge")
squared_error = _of_values("squared_error")
huber = _of_values("huber")
binary_xent = _of_values("binary_xent")
count_largest = _count("count_largest")
count_signs = _count("count_signs")
