"""Describe a kernel by two laws, its arithmetic and its memory traffic, so that a cost model or a roofline needs no measurement to begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Kernel(NamedTuple):
    """Name one kernel and say what a call costs.

    `flops(*sizes)` counts floating-point operations; `nbytes(*sizes, itemsize=4)` counts bytes read and written once from memory.
    The sizes are those named by the family: (m, k, n) for a product, (m, n) for a table, (n,) for a vector.
    """

    name: str
    flops: Callable[..., int]
    nbytes: Callable[..., int]


def law(name: str, flops: Callable[..., int], values: Callable[..., int]) -> Kernel:
    """Build a `Kernel` from its flops and the number of floating-point values that it moves."""
    return Kernel(name, flops, lambda *sizes, itemsize=4: itemsize * values(*sizes))
