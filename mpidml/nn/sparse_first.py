"""Take a network apart behind its first product, so that of the first weight only the rows are needed whose features occur.

    sparse rows x, W  ->  x W  ->  + b, activation  ->  layer 1  ->  ...          flat parameters:  W (n_features x width) | the rest, from b on
    rows of a table       here     the rest, a network of its own: its input is x W
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from mpidml_kernels.dense import FROM_INPUT
from numpy.typing import DTypeLike

from mpidml.core.csr import Csr
from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Layer, Pass, Thunk
from mpidml.nn.layers.dense import Dense
from mpidml.nn.network import Network


class SparseFirst:
    """Cut `net`, whose first layer is dense, in two: `n_rows` x `width` weights of the first layer, and the `rest` of its `n_weight` + ... parameters."""

    def __init__(self, net: Network) -> None:
        first = net.layers[0]
        assert isinstance(first, Dense)
        self.n_rows, self.width = first.n_in, first.n_out
        self.n_weight = self.n_rows * self.width
        self.rest = Network([Behind(first), *net.layers[1:]], self.width, net.n_outputs, net.loss, net.dtype, net.backend, device=net.device)


class Behind(Layer):
    """What a dense layer does with its product: out = activation(x + b); `Step.delta` is then the gradient of x."""

    ends: ClassVar[bool] = True

    def __init__(self, dense: Dense) -> None:
        self.activation = dense.activation

    def connect(self, place: int, n_in: int, n_outputs: int | None) -> int:
        """Keep the width."""
        super().connect(place, n_in, n_outputs)
        self.tensors = [("bias", (n_in,))]
        return n_in

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count the bias and the activation, there and back."""
        return 4 * m * self.n_in

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return a buffer for the sums where the activation is undone from them, not from the output."""
        return (np.zeros((m, self.n_out), dtype),) if self.activation in FROM_INPUT else ()

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls that copy the product, then add the bias and activate."""
        sums, *out = (*a.kept, a.out)
        return [(backend.copy, (sums, a.x)), (getattr(backend, f"bias_{self.activation}"), (sums, a.parameters["bias"], *out))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Undo the activation, which also sums the bias gradient; what is left in `a.d` is the gradient of the product."""
        known = (*a.kept, a.out)[0]
        return [Group([(getattr(backend, f"{self.activation}_backward"), (a.d, known, a.gradients["bias"]))], 0, self.n_out)]


class Products:
    """The products of sparse rows with rows of the first weight (n_columns, width), computed by `backend`, where all of these lie, for the slices that are asked for."""

    def __init__(self, backend: Any, x: Csr, weight: Array) -> None:
        self.backend, self.x, self.weight = backend, x, weight

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Array:
        part = self.x[rows]
        out: Array = self.backend.zeros((len(part), self.weight.shape[1]), self.weight.dtype)
        self.backend.csr_matmul(*part.arrays, self.weight, out)
        return out
