"""Run the links of an optimizer that need more than elements: on the whole gradient where a rank has it, else on the parts that the rank owns.

    own parts   | . [##] . . | . [##] . . |    squares of these  --sum over ranks-->  |g|^2 of all: what `clip` measures

A norm of the whole gradient is one number more to sum; norms of tensors (lars, lamb) are taken on the whole gradient alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mpidml.core.role import Array
from mpidml.optim.base import State, Transforms


def needs_whole(links: Transforms | None) -> bool:
    """Tell whether links cannot run on parts of the gradient."""
    return links is not None and any(link.scope == "tensor" for link in links.links)


class Place(NamedTuple):
    """A range of the summed gradient, the links' state of it, and its weights, which are only read."""

    gradient: Array
    state: State
    weights: Array


class _Measured:
    """The arithmetic `backend`, but for sums of squares, all of which are `squares`."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.squares = backend, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def sum_of_squares(self, a: Array) -> float:
        """Return what was measured of all parts."""
        return self.squares


class OwnLinks:
    """The `links` of a data-parallel strategy whose sums are planned, on what of them this rank has (Collective on its ranks)."""

    def __init__(self, strategy: Any) -> None:
        self.strategy, self.links, net = strategy, strategy.links, strategy.net
        self.parts: list[Place] = []
        self.whole: State = {} if self.links is None or strategy.shares else self.links.init(net.n_params, net.dtype)
        self.backend = net.backend if strategy.mirror is None else net.device.kernels
        if self.links is not None and strategy.shares:
            self.number = strategy.collective.allocate(1, np.float64)
            self.sum = strategy.collective.plan(self.number)
        elif self.links is not None:
            there = (self.whole, strategy.weights) if strategy.mirror is None else (strategy.mirror.state(self.whole), strategy.there)
            self.all = Place(strategy.total, *there)

    def state(self, gradient: Array, lo: int, hi: int) -> State:
        """Return the links' state of elements [lo, hi), whose sums will lie in `gradient`, and which this rank changes: to be saved with the optimizer's."""
        if self.links is None or not self.strategy.shares:
            return {name: array[lo:hi] for name, array in self.whole.items()}
        self.parts.append(Place(gradient, self.links.init(hi - lo, gradient.dtype), self.strategy.weights[lo:hi]))
        return self.parts[-1].state

    def transform(self, step: int) -> None:
        """Change the sums in place, link by link (Collective where ranks have parts)."""
        if self.links is None:
            return
        if not self.strategy.shares:
            self.links.transform(self.backend, *self.all, step)
            return
        measured = _Measured(self.backend)
        for link, keys in self.links.named():
            if link.scope == "global":
                measured.squares = self._summed(sum(float(self.backend.sum_of_squares(part.gradient)) for part in self.parts if part.gradient.size))
            for gradient, state, weights in self.parts:
                link.transform(measured, gradient, {name: state[key] for name, key in keys}, weights, step)

    def free(self) -> None:
        """Free the requests of the sum."""
        if self.links is not None and self.strategy.shares:
            self.sum.free()

    def _summed(self, own: float) -> float:
        """Return the sum of a number over the ranks, which finds the same bits on all."""
        self.number[0] = own
        self.sum.start()
        self.strategy.driver.wait(self.sum)
        return float(self.number[0])
