"""Lay the vector kernels over threads; their meaning is in reference.py."""

from __future__ import annotations

from functools import partial
from typing import Any

from mpidml_kernels.launch import BLOCK, Gpu, blocks, each

_each = partial(each, "update")

add = _each("add")
add3 = _each("add3")
scale = _each("scale")
descend = _each("descend")
descend_in_place = _each("descend_in_place")
momentum = _each("momentum")
momentum_in_place = _each("momentum_in_place")
momentum_transform = _each("momentum_transform")
nesterov = _each("nesterov")
nesterov_in_place = _each("nesterov_in_place")
nesterov_transform = _each("nesterov_transform")
decay_transform = _each("decay_transform")
l1_transform = _each("l1_transform")
clip_transform = _each("clip_transform")


def sum_of_squares(gpu: Gpu, g: Any) -> float:
    """Return the sum of g^2, accumulated in float64: sums of blocks, then their sum, so always the same bits for one size."""
    n = blocks(g.size)
    sums = gpu.scratch("sums", n, "f8")
    gpu.launch("update", "squares_of_blocks", n, BLOCK, g, sums, g.size)
    return gpu.total(sums, n)
