"""Write each layer's forward and backward pass as a short list of kernel calls on buffers that exist already.

A layer never computes: it is asked once, when a step is built, which kernels to call on which arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from mpidml_kernels import LAWS

from mpidml.core.errors import UserError, nearest
from mpidml.core.flat import Array

Thunk = tuple[Callable[..., Any], tuple[Any, ...]]  # a kernel and its arguments

ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh")
SPLIT_NBYTES = 1 << 20  # a weight gradient of this size or more can be finished in two parts, so that the first travels during the second
LAST_SHARE = 4  # the second part is one in so many of the rows: it travels when nothing is left to compute


class Group(NamedTuple):
    """Kernel calls after which the layer's gradient elements [lo, hi) are final (none if lo == hi)."""

    thunks: list[Thunk]
    lo: int = 0
    hi: int = 0


class Dense:
    """out = activation(x W + b); weight: (n_in, n_out), bias: (n_out,)."""

    def __init__(self, n_in: int, n_out: int, activation: str = "linear") -> None:
        if activation not in ACTIVATIONS:
            raise UserError(f"activation: there is no '{activation}'; {nearest(activation, ACTIVATIONS)}")
        if n_in < 1 or n_out < 1:
            raise UserError(f"layer of {n_in} inputs and {n_out} outputs: both must be at least 1; give other sizes")
        self.n_in, self.n_out, self.activation = n_in, n_out, activation
        self.tensors: list[tuple[str, tuple[int, ...]]] = [("weight", (n_in, n_out)), ("bias", (n_out,))]

    def width(self, n_in: int) -> int:
        """Return n_out; ValueError if `n_in` is not the layer's own."""
        if n_in != self.n_in:
            raise ValueError(f"layer of {self.n_in} inputs is given {n_in}")
        return self.n_out

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw the weight in float64, so that every dtype starts at the same point; the bias is 0.

        For relu: normal of variance 2 / n_in (He et al., ICCV 2015); else uniform of variance 2 / (n_in + n_out) (Glorot, Bengio, AISTATS 2010).
        """
        shape = (self.n_in, self.n_out)
        bound = (6 / (self.n_in + self.n_out)) ** 0.5
        relu = self.activation == "relu"
        parameters["weight"][...] = random.standard_normal(shape) * (2 / self.n_in) ** 0.5 if relu else random.uniform(-bound, bound, shape)
        parameters["bias"][...] = 0

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count forward and backward for m rows: three products, or two if nobody wants dx."""
        product = LAWS["matmul"].flops(m, self.n_in, self.n_out)
        rest = LAWS[f"bias_{self.activation}"].flops(m, self.n_out) + LAWS[f"{self.activation}_backward"].flops(m, self.n_out)
        return product * (3 if wants_dx else 2) + rest

    def parts(self, itemsize: int, split: bool) -> list[tuple[int, int]]:
        """Return the ranges of the layer's flat gradient in the order in which `backward` finishes them; `split` cuts a large weight in two."""
        n_weight = self.n_in * self.n_out
        cut = self.n_in // LAST_SHARE * self.n_out if split and n_weight * itemsize >= SPLIT_NBYTES else 0
        return [(cut, n_weight + self.n_out), *([(0, cut)] if cut else [])]

    def forward(self, backend: Any, x: Array, out: Array, parameters: dict[str, Array]) -> list[Thunk]:
        """Return the calls that multiply, then add the bias and activate in place."""
        return [
            (backend.matmul, (x, parameters["weight"], out)),
            (getattr(backend, f"bias_{self.activation}"), (out, parameters["bias"])),
        ]

    def backward(
        self,
        backend: Any,
        x: Array,
        out: Array,
        d: Array,
        dx: Array | None,
        parameters: dict[str, Array],
        gradients: dict[str, Array],
        split: bool = False,
    ) -> list[Group]:
        """Return the calls that turn `d`, the gradient of `out` (overwritten), into `gradients` and `dx` (None: nobody wants it).

        The activation is undone first, which also sums the bias gradient; then dW = x^T d from its last rows to its first; then dx = d W^T.
        """
        weight = gradients["weight"]
        groups = []
        for lo, hi in self.parts(weight.itemsize, split):
            rows = slice(lo // self.n_out, min(hi // self.n_out, self.n_in))
            groups.append(Group([(backend.matmul, (x.T[rows], d, weight[rows]))], lo, hi))
        groups[0].thunks.insert(0, (getattr(backend, f"{self.activation}_backward"), (d, out, gradients["bias"])))
        if dx is not None:
            groups.append(Group([(backend.matmul, (d, parameters["weight"].T, dx))]))
        return groups


class Dropout:
    """out = x / (1 - rate) where kept, else 0 (Srivastava et al., JMLR 2014); the mask depends on the sample, not on rank or batch."""

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise UserError(f"dropout: rate {rate} is not in [0, 1); give one that is")
        self.rate = float(rate)
        self.tensors: list[tuple[str, tuple[int, ...]]] = []

    def width(self, n_in: int) -> int:
        """Return n_in."""
        return n_in

    def forward(self, backend: Any, x: Array, out: Array, ids: Array, key: Array) -> list[Thunk]:
        """Return the call that drops into `out`: the layer before needs its own output to undo its activation.

        ids: int64 (m,), the rows' global sample indices; key: uint64 (1,), this layer's in this pass.
        """
        return [(backend.dropout, (x, ids, key, self.rate, out))]

    def backward(self, backend: Any, d: Array, ids: Array, key: Array) -> list[Group]:
        """Return the call that drops the gradient in place by the same mask."""
        return [Group([(backend.dropout_in_place, (d, ids, key, self.rate))])]
