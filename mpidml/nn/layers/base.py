"""Say what a layer is: it never computes, it is asked once, when a step is built, which kernels to call on which arrays.

    connect (sizes) -> tensors, initial (weights) -> kept (buffers) -> forward, backward (kernel calls)
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array

Thunk = tuple[Callable[..., Any], tuple[Any, ...]]  # a kernel and its arguments


class Group(NamedTuple):
    """Kernel calls after which the layer's gradient elements [lo, hi) are final (none if lo == hi).

    `apart`: they make gradients of weights alone, from arrays that stay as they are, so that they may come after all other groups.
    """

    thunks: list[Thunk]
    lo: int = 0
    hi: int = 0
    apart: bool = False


class Pass(NamedTuple):
    """The arrays of one layer in a pass over m rows.

    x (m, n_in) and out (m, n_out) are kept from forward to backward, and so are `kept`, the layer's own. d: the gradient of out, overwritten;
    dx: that of x, None if nobody wants it; where the layer works in place, d itself. ids: int64 (m,), the rows' global sample indices;
    salt: uint64 (1,), the key of this pass. `adding`: gradients that the layer `adds` are added to what their arrays hold.
    A pass that only scores has no d, dx, gradients, ids and salt, and its x may be sparse rows (`Csr`) where the layer is a dense one, the first.
    """

    x: Any
    out: Array
    kept: tuple[Array, ...]
    parameters: dict[str, Array]
    d: Array | None = None
    dx: Array | None = None
    gradients: dict[str, Array] = {}  # noqa: RUF012 - never changed
    ids: Array | None = None
    salt: Array | None = None
    adding: bool = False


class Layer:
    """One layer of a network; a plug-in file holds one, and its constructor's arguments are the keys of a `[[layer]]`.

    The arrays that it is given may be a device's: it hands them to the kernels of `backend`, slices them, and calls none of NumPy's functions on them.
    An array of its own that a kernel reads goes through `backend.here`.
    `in_place`: the gradient of the input takes the place of that of the output. `training_only`: it passes its input on when rows are scored.
    `random`: it reads ids and salt. `ends`: it may be the last, since its backward does not read `out`, where the loss leaves the gradient.
    `apart`: tensors whose gradient the groups of `backward` that are apart make. `adds`: tensors whose gradient it can add to another where that lies.
    `families`: of kernels that it calls beside those of every network (`mpidml_kernels.ON_DEMAND`), so that they are loaded before a clock runs.
    `place`: its position in the network, from 0. `tensors`: names and shapes, known once it is connected.
    """

    in_place: ClassVar[bool] = False
    training_only: ClassVar[bool] = False
    random: ClassVar[bool] = False
    ends: ClassVar[bool] = False
    apart: ClassVar[tuple[str, ...]] = ()
    adds: ClassVar[tuple[str, ...]] = ()
    families: ClassVar[tuple[ModuleType, ...]] = ()

    place: int
    n_in: int
    n_out: int
    tensors: list[tuple[str, tuple[int, ...]]]

    def categories(self) -> tuple[int, ...]:
        """Return which columns of the layer's input are codes of categories, not numbers."""
        return ()

    def see(self, *parts: Array) -> None:
        """Look at the data, if this is the first layer, before `connect`: all rows, in parts (n, features); ValueError for what does not fit."""

    def connect(self, place: int, n_in: int, n_outputs: int | None) -> int:
        """Take the place in the network and the width before it, and return the own width.

        n_outputs: the data's number of outputs for the last layer, else None. ValueError for what does not fit.
        """
        self.place, self.n_in, self.n_out, self.tensors = place, n_in, n_in, []
        return n_in

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw the initial values in float64, so that every dtype starts at the same point."""

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count the operations of forward and backward for m rows."""
        raise NotImplementedError

    def parts(self, itemsize: int, split: bool) -> list[tuple[int, int]]:
        """Return the ranges of the layer's flat gradient in the order in which `backward` finishes them; `split` may cut a large one in two."""
        size = sum(int(np.prod(shape)) for _, shape in self.tensors)
        return [(0, size)] if size else []

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return buffers for what `backward` needs of m rows besides x and out; the first axis is that of the rows where rows are scored, too.

        They are NumPy's, with what they begin with: a pass on a device has copies of them there.
        """
        return ()

    def lent(self, kept: tuple[Array, ...], m: int) -> tuple[Array, ...]:
        """Return what of the buffers of `kept` a pass over m rows gets."""
        return tuple(each[:m] for each in kept)

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls that fill `a.out`."""
        raise NotImplementedError

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the calls that turn `a.d` into `a.gradients` and `a.dx`."""
        raise NotImplementedError


def whole(name: str, value: object, at_least: int) -> int:
    """Return `value` if it is a whole number from `at_least` up; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} = {value!r} is not a whole number from {at_least} up; give one that is")
    return value
