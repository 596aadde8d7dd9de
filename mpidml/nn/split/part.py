"""Say what is common to the parts of layers: each is a layer with tensors of its own, cut out of those of the whole one."""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import numpy as np

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Layer
from mpidml.nn.split.line import Line

Index = tuple[slice, ...]


class Part(Layer):
    """This rank's part of a connected layer `whole`. `n_in`, `n_out`: the widths of what comes and leaves here; `index`: of each tensor its place.

    `shared`: tensors that every rank holds whole, alike to the bit as their gradients are. `place` stays that of the whole network, since it is the
    key of a mask. A part of width 0 holds and computes nothing, and still calls every sum.
    """

    shared: ClassVar[frozenset[str]] = frozenset()

    whole: Any
    line: Line
    index: dict[str, Index]

    def __init__(self, whole: Layer, line: Line) -> None:
        self.whole, self.line, self.place = whole, line, whole.place
        self.n_in, self.n_out, self.tensors, self.index = whole.n_in, whole.n_out, [], {}

    def connect(self, place: int, n_in: int, n_outputs: int | None) -> int:
        """Return the own width; ValueError for another width before it than it was made for."""
        if n_in != self.n_in:
            raise ValueError(f"takes {self.n_in} columns on rank {self.line.rank}, the layer before it gives {n_in}; split the network again")
        return self.n_out

    def hold(self, **index: Index) -> None:
        """Take tensors by name, each its place within the whole: slices with a start and a stop."""
        self.index = index
        self.tensors = [(name, tuple(at.stop - at.start for at in place)) for name, place in index.items()]

    def parts(self, itemsize: int, split: bool) -> list[tuple[int, int]]:
        """Return the ranges of the part's gradient, none where it holds nothing."""
        return [part for part in super().parts(itemsize, split) if part[1] > part[0]]

    def forward_sums(self, m: int) -> list[int]:
        """Return the lengths of what a forward pass over m rows sums."""
        return []

    def backward_sums(self, m: int, wants_dx: bool) -> list[int]:
        """Return the lengths of what a backward pass over m rows sums."""
        return []


def is_shared(layer: Layer, name: str) -> bool:
    """Tell whether other ranks have the same tensor of that name, too: all of a layer that is no part."""
    return not isinstance(layer, Part) or name in layer.shared


def index_of(layer: Layer) -> dict[str, Index]:
    """Return the place of a layer's tensors within the whole ones: of a part its own, else all of them."""
    if isinstance(layer, Part):
        return layer.index
    return {name: tuple(slice(0, n) for n in shape) for name, shape in layer.tensors}


def fill_places(start: int, shape: tuple[int, ...], index: Index, out: Array) -> None:
    """Fill `out` with where the elements at `index` of a tensor of `shape`, which begins at `start`, lie in flat parameters; nothing is made of the tensor's size."""
    out[...] = start
    step = prod(shape)
    for axis, (n, at) in enumerate(zip(shape, index, strict=True)):
        step //= n
        out += (np.arange(at.start, at.stop) * step).reshape(-1, *(1,) * (len(shape) - axis - 1))
