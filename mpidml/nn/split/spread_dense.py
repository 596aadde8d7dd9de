"""Cut a dense layer, out = activation(x W + b), whose rows are spread over the ranks: the longer side of W is cut, and what travels whole is the shorter.

    n_out >= n_in    W by columns    rows of x gathered             -> own columns of x W  -> own rows, all columns
    n_out <  n_in    W by rows       own columns of x, of all rows  -> terms of x W        -> own rows of the sum

Bias and activation are those of the own rows, on every rank, as in a layer that is not cut; so the gradient of the bias is summed over ranks, that of W is not.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Pass, Thunk
from mpidml.nn.layers.dense import Dense
from mpidml.nn.split.draws import draw_part
from mpidml.nn.split.spread import Cut, Side, Spread, SpreadPart, Whole


class SpreadDense(SpreadPart):
    """weight: (n_in, own) or (own, n_out), bias: (n_out,), alike on all ranks; x and out are the own rows."""

    ends: ClassVar[bool] = True
    apart: ClassVar[tuple[str, ...]] = ("weight",)
    adds: ClassVar[tuple[str, ...]] = ("weight",)
    shared: ClassVar[frozenset[str]] = frozenset({"bias"})
    whole: Dense

    def __init__(self, whole: Dense, spread: Spread) -> None:
        super().__init__(whole, spread.line)
        taken, given = (Whole, Cut) if whole.n_out >= whole.n_in else (Cut, Whole)
        self.taken: Side = taken(spread, whole.n_in)
        self.given: Side = given(spread, whole.n_out)
        rows = self.taken.columns if isinstance(self.taken, Cut) else slice(0, whole.n_in)
        columns = self.given.columns if isinstance(self.given, Cut) else slice(0, whole.n_out)
        self.hold(weight=(rows, columns), bias=(slice(0, whole.n_out),))

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw the own part of the whole layer's weight; the bias is 0."""
        whole = self.whole
        draw_part(lambda shape: whole.drawn(random, shape), (whole.n_in, whole.n_out), self.index["weight"], parameters["weight"])
        parameters["bias"][...] = 0

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count as the whole: a part of the products, of all rows."""
        return self.whole.flops(m, wants_dx)

    def moved(self, wants_dx: bool) -> tuple[list[int], list[int]]:
        """Return x brought and the product given, its gradient brought and that of x given."""
        (x, dx), (d, product) = self.taken.sent(), self.given.sent()
        return [x, product], [d, dx] if wants_dx else [d]

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return what the whole keeps of own rows, and buffers of all rows: for x, for the product and the gradient of it, and for that of x."""
        return *self.whole.kept(m, dtype), *(np.zeros(side.room(m), dtype) for side in (self.taken, self.given, self.taken))

    def lent(self, kept: tuple[Array, ...], m: int) -> tuple[Array, ...]:
        """Return m rows of what the whole keeps, and the buffers."""
        return *(each[:m] for each in kept[:-3]), *kept[-3:]

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls that bring x, multiply, and give the product; then, on own rows, bias and activation."""
        *sums, x, product, _ = a.kept
        of_rows = (*sums, a.out)
        multiply = _product(backend, self.taken.all(x), a.parameters["weight"], self.given.all(product))
        activate = (getattr(backend, f"bias_{self.whole.activation}"), (of_rows[0], a.parameters["bias"], *of_rows[1:]))
        return [*self.taken.bring(backend, a.x, x), *multiply, *self.given.give(backend, product, of_rows[0]), activate]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the calls that undo the activation on own rows and bring what it leaves; then those of dW = x^T d; then dx = d W^T, given."""
        *sums, x, product, back = a.kept
        weight, d, d_all = a.gradients["weight"], a.d, self.given.all(product)
        assert d is not None
        undo = (getattr(backend, f"{self.whole.activation}_backward"), (d, (*sums, a.out)[0], a.gradients["bias"]))
        groups = [
            Group([undo, *self.given.bring(backend, d, product)]),
            Group(_product(backend, self.taken.all(x).T, d_all, weight, a.adding), 0, weight.size, apart=True),
        ]
        if a.dx is not None:
            groups.append(Group([*_product(backend, d_all, a.parameters["weight"].T, self.taken.all(back)), *self.taken.give(backend, back, a.dx)]))
        return groups


def _product(backend: Any, a: Array, b: Array, out: Array, adding: bool = False) -> list[Thunk]:
    """Return the call that multiplies, also where a rank has nothing to multiply."""
    if not out.size:
        return []
    if not a.shape[1]:
        return [] if adding else [(out.fill, (0,))]
    return [(backend.matmul_add if adding else backend.matmul, (a, b, out))]
