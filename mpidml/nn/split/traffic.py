"""Say what a pass over m rows sums over the line, and what a rank sends for it, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from mpidml.nn.layers.base import Layer
from mpidml.nn.split.loss import Ending
from mpidml.nn.split.part import Part


class Exchange(NamedTuple):
    """One buffer that goes over the line: its length, the bytes of an element, and whether its largest values are wanted, not its sum."""

    n: int
    itemsize: int
    most: bool = False


def exchanges(parts: Sequence[Layer], ending: Ending | None, first: int, m: int, dtype: DTypeLike, trains: bool = True) -> list[Exchange]:
    """Return the exchanges of a pass over m rows in their order, alike on every rank; of a pass that does not train those of its forward half.

    first: layers behind it want the gradient of their input. Without an ending, those of the loss are left out.
    """
    size = np.dtype(dtype).itemsize
    cut = [(i, part) for i, part in enumerate(parts) if isinstance(part, Part)]
    forward = [Exchange(n, size) for _, part in cut for n in part.forward_sums(m)]
    backward = [Exchange(n, size) for i, part in reversed(cut) for n in part.backward_sums(m, i > first)]
    sums, most = ending.sums(m, dtype) if ending else ([], [])
    end = [*(Exchange(n, each, True) for n, each in most), *(Exchange(n, each) for n, each in sums)]
    return [*forward, *end, *(backward if trains else [])]


def nbytes(listed: Sequence[Exchange], summed: Callable[[int], int], most: Callable[[int], int]) -> int:
    """Return the bytes that a rank sends, where it sends `summed(n)` elements for a sum of n, and `most(n)` for their largest values."""
    return sum((most if each.most else summed)(each.n) * each.itemsize for each in listed)
