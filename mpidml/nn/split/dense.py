"""Cut a dense layer, out = activation(x W + b), by the columns or by the rows of W (Shoeybi et al., Megatron-LM, 2019, section 3).

    columns    x whole -> own columns of out                       backward: partial dx, summed where it is wanted
    rows       own columns of x -> partial x W, summed -> out      backward: own columns of dx, nothing summed
    slices     x whole, of which own columns are read -> out       as rows; dx is put together by a sum
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.csr import Csr
from mpidml.core.errors import UserError
from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Pass, Thunk
from mpidml.nn.layers.dense import Dense
from mpidml.nn.split.draws import draw_part
from mpidml.nn.split.line import Line, own, summed
from mpidml.nn.split.part import Part


class DensePart(Part, Dense):
    """What parts by columns and by rows share: a dense layer of the own widths, whose weight is drawn as that of the whole."""

    def __init__(self, whole: Dense, line: Line, rows: slice, columns: slice) -> None:
        """Take rows and columns of the weight; the bias goes with the columns."""
        Part.__init__(self, whole, line)
        self.units, self.activation = whole.units, whole.activation
        self.hold(weight=(rows, columns), bias=(columns,))
        self.n_in, self.n_out = self.tensors[0][1]

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw the own part of the whole layer's weight; the bias is 0."""
        whole: Dense = self.whole
        draw_part(lambda shape: whole.drawn(random, shape), (whole.n_in, whole.n_out), self.index["weight"], parameters["weight"])
        parameters["bias"][...] = 0


class Columns(DensePart):
    """weight: (n_in, own), bias: (own,); x is whole, out are the own columns."""

    def __init__(self, whole: Dense, line: Line) -> None:
        super().__init__(whole, line, slice(0, whole.n_in), own(line, whole.n_out))

    def parts(self, itemsize: int, split: bool) -> list[tuple[int, int]]:
        """Return the ranges of a dense layer's gradient; none where it has no columns."""
        return super().parts(itemsize, split) if self.n_out else []

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls of a dense layer of the own width."""
        return super().forward(backend, a) if self.n_out else []

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the calls of a dense layer of the own width, and the sum of dx, to which every rank gives a term."""
        if not self.n_out:
            return [] if a.dx is None else [Group([(a.dx.fill, (0,)), summed(self.line, a.dx)])]
        groups = super().backward(backend, a, split)
        if a.dx is not None:
            groups[-1].thunks.append(summed(self.line, a.dx))
        return groups

    def backward_sums(self, m: int, wants_dx: bool) -> list[int]:
        """Return the length of dx."""
        return [m * self.n_in] if wants_dx else []


class Rows(DensePart):
    """weight: (own, n_out), bias: (n_out,), alike on all ranks; x are the own columns, out is whole."""

    shared: ClassVar[frozenset[str]] = frozenset({"bias"})

    def __init__(self, whole: Dense, line: Line) -> None:
        super().__init__(whole, line, own(line, whole.n_in), slice(0, whole.n_out))

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the partial product, its sum over the line, and then, once and after it, bias and activation."""
        product, activate = super().forward(backend, a)
        return [product, summed(self.line, (*a.kept, a.out)[0]), activate]

    def forward_sums(self, m: int) -> list[int]:
        """Return the length of the product."""
        return [m * self.n_out]


class Slices(Part):
    """As `Rows`, behind a whole x: weight (own, n_out), bias (n_out,), x and out whole. For what stands between two that need whole rows."""

    ends: ClassVar[bool] = True
    apart: ClassVar[tuple[str, ...]] = Rows.apart
    adds: ClassVar[tuple[str, ...]] = Rows.adds
    shared: ClassVar[frozenset[str]] = Rows.shared

    def __init__(self, whole: Dense, line: Line) -> None:
        super().__init__(whole, line)
        self.rows = Rows(whole, line)
        self.tensors, self.index, self.columns = self.rows.tensors, self.rows.index, self.rows.index["weight"][0]

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw as `Rows`."""
        self.rows.initial(random, parameters)

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count as `Rows`."""
        return self.rows.flops(m, wants_dx)

    def parts(self, itemsize: int, split: bool) -> list[tuple[int, int]]:
        """Return the ranges of `Rows`."""
        return self.rows.parts(itemsize, split)

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return a buffer for the own columns of dx besides that of `Rows`."""
        return *self.rows.kept(m, dtype), np.zeros((m, self.rows.n_in), dtype)

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls of `Rows` on the own columns of x; UserError for sparse rows, whose columns cannot be sliced."""
        if isinstance(a.x, Csr):
            raise UserError("tensor line: a dense layer that takes sparse rows and gives whole ones cannot be cut; follow it by a dense one")
        return self.rows.forward(backend, a._replace(x=a.x[:, self.columns], kept=a.kept[:-1]))

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the calls of `Rows`, and those that lay the own columns of dx among zeros and sum it."""
        part = None if a.dx is None else a.kept[-1]
        groups = self.rows.backward(backend, a._replace(x=a.x[:, self.columns], kept=a.kept[:-1], dx=part), split)
        if a.dx is not None:
            groups.append(Group([(a.dx.fill, (0,)), (backend.copy, (a.dx[:, self.columns], part)), summed(self.line, a.dx)]))
        return groups

    def forward_sums(self, m: int) -> list[int]:
        """Return the length of the product."""
        return [m * self.n_out]

    def backward_sums(self, m: int, wants_dx: bool) -> list[int]:
        """Return the length of dx."""
        return [m * self.n_in] if wants_dx else []
