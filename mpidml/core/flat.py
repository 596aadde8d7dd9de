"""Lay named tensors out in one flat buffer, so that a model's parameters (or gradients) move, sum and update as one array.

    names    layers.0.weight          layers.0.bias  layers.1.weight ...
    flat     [.......................][............][............    ]
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class FlatParams:
    """The layout of named tensors in a flat buffer; it holds no values itself.

    `slices[name]` is the tensor's range in elements; `size` the length of the buffer.
    """

    def __init__(self, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        self.shapes = dict(shapes)
        if len(self.shapes) != len(shapes):
            raise ValueError("flat parameters: two tensors have the same name")
        self.slices: dict[str, slice] = {}
        at = 0
        for name, shape in shapes:
            self.slices[name] = slice(at, at + prod(shape))
            at += prod(shape)
        self.size = at

    def view(self, flat: Array, name: str) -> Array:
        """Return tensor `name` as a view of `flat` (shape (size,), contiguous)."""
        return flat[self.slices[name]].reshape(self.shapes[name])

    def views(self, flat: Array) -> dict[str, Array]:
        """Return all tensors as views of `flat`."""
        return {name: self.view(flat, name) for name in self.shapes}
