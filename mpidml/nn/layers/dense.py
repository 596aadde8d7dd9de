"""Connect every input to every output: out = activation(x W + b)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from mpidml_kernels import LAWS
from mpidml_kernels.dense import ACTIVATIONS, FROM_INPUT
from numpy.typing import DTypeLike

from mpidml.core.csr import Csr
from mpidml.core.errors import nearest
from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Layer, Pass, Thunk, whole

RECTIFIERS = ("relu", "leaky_relu", "gelu")
SPLIT_NBYTES = 1 << 20  # a weight gradient of this size or more can be finished in two parts, so that the first travels during the second
LAST_SHARE = 4  # the second part is one in so many of the rows: it travels when nothing is left to compute


class Dense(Layer):
    """weight: (n_in, units), bias: (units,). Without `units` it has the data's number of outputs, which only the last layer may."""

    ends: ClassVar[bool] = True
    apart: ClassVar[tuple[str, ...]] = ("weight",)
    adds: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, units: int | None = None, activation: str = "linear") -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: there is no '{activation}'; {nearest(str(activation), ACTIVATIONS)}")
        self.units, self.activation = None if units is None else whole("units", units, 1), activation

    def connect(self, place: int, n_in: int, n_outputs: int | None) -> int:
        """Return `units`, or the data's number of outputs."""
        n_out = n_outputs if self.units is None else self.units
        if n_out is None:
            raise ValueError("units: is missing, and only the last layer takes the data's number of outputs; give a width")
        if n_outputs is not None and n_out != n_outputs:
            raise ValueError(f"units = {n_out}: the data and the loss have {n_outputs} output(s); give as many, or leave units out")
        if n_outputs is not None and self.activation != "linear":
            raise ValueError(f"activation = '{self.activation}': a loss takes the last layer's sums as they are; leave it out")
        self.place, self.n_in, self.n_out, self.tensors = place, n_in, n_out, [("weight", (n_in, n_out)), ("bias", (n_out,))]
        return n_out

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw the weight; the bias is 0.

        For rectifiers: normal of variance 2 / n_in (He et al., ICCV 2015); else uniform of variance 2 / (n_in + n_out) (Glorot, Bengio, AISTATS 2010).
        """
        parameters["weight"][...] = self.drawn(random, (self.n_in, self.n_out))
        parameters["bias"][...] = 0

    def drawn(self, random: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return the next values of the weight, which is drawn row by row, in float64."""
        bound = (6 / (self.n_in + self.n_out)) ** 0.5
        rectified = self.activation in RECTIFIERS
        values: Array = random.standard_normal(shape) * (2 / self.n_in) ** 0.5 if rectified else random.uniform(-bound, bound, shape)
        return values

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count three products, or two if nobody wants dx, and the activation."""
        product = LAWS["matmul"].flops(m, self.n_in, self.n_out)
        rest = LAWS[f"bias_{self.activation}"].flops(m, self.n_out) + LAWS[f"{self.activation}_backward"].flops(m, self.n_out)
        return product * (3 if wants_dx else 2) + rest

    def parts(self, itemsize: int, split: bool) -> list[tuple[int, int]]:
        """Return one range; of a large weight that is split, its last three quarters with the bias, then its first quarter."""
        n_weight = self.n_in * self.n_out
        cut = self.n_in // LAST_SHARE * self.n_out if split and n_weight * itemsize >= SPLIT_NBYTES else 0
        return [(cut, n_weight + self.n_out), *([(0, cut)] if cut else [])]

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return a buffer for the sums x W + b where the activation is undone from them, not from the output."""
        return (np.zeros((m, self.n_out), dtype),) if self.activation in FROM_INPUT else ()

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls that multiply, then add the bias and activate, in place unless the sums are kept."""
        activate = getattr(backend, f"bias_{self.activation}")
        sums, *out = (*a.kept, a.out)
        weight = a.parameters["weight"]
        product = (backend.csr_matmul, (*a.x.arrays, weight, sums)) if isinstance(a.x, Csr) else (backend.matmul, (a.x, weight, sums))
        return [product, (activate, (sums, a.parameters["bias"], *out))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Undo the activation, which also sums the bias gradient; then dW = x^T d from its last rows to its first; then dx = d W^T."""
        weight, d, known = a.gradients["weight"], a.d, (*a.kept, a.out)[0]
        product = backend.matmul_add if a.adding else backend.matmul
        groups = [Group([(getattr(backend, f"{self.activation}_backward"), (d, known, a.gradients["bias"]))])]
        for lo, hi in self.parts(weight.itemsize, split):
            rows = slice(lo // self.n_out, min(hi // self.n_out, self.n_in))
            groups.append(Group([(product, (a.x.T[rows], d, weight[rows]))], lo, hi, apart=True))
        if a.dx is not None:
            groups.append(Group([(backend.matmul, (d, a.parameters["weight"].T, a.dx))]))
        return groups
