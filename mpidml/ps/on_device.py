"""Make a store's updates on a device: its newest values and its optimizer lie there, and what an update leaves comes to the host for whoever reads.

    host     sum of gradients                new version                  versions, windows, answers; the optimizer where it is asked for
                   | up                          ^ down
    device     gradient  ->  update  ->  newest values; optimizer         by the kernels that passes run on

Of an update of some rows of a table only these go up, and come down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.optim.base import Chain, State
from mpidml.sync.base import Tuning


class OnDevice:
    """The device's side of a store: `values` (n,), the newest, and the arrays of `chain`, its optimizer, by `kernels` (`mpidml_kernels.cuda`); without one it adds.

    Cost of an update: n values of each gradient up, n down, and the optimizer's pass at the speed of the device's memory; of rows of a table those that were sent up, and
    those that change down. It waits for the device.
    """

    def __init__(self, kernels: Any, chain: Chain | None, values: Array, optimizer: State, whose: str = "a shard's", in_rows: bool = False) -> None:
        self.kernels, self.chain, self.whose, self.is_ahead = kernels, chain, whose, False
        self.values = self._zeros(values)
        self._gradient = None if in_rows else self._zeros(values)
        self.optimizer: State = {}
        for name, array in optimizer.items():
            with kernels.naming(f"{whose} {name}"):
                self.optimizer[name] = kernels.zeros(array.size, array.dtype)
        self.up(values, optimizer)

    def _zeros(self, like: Any) -> Any:
        with self.kernels.naming(f"{self.whose} values and gradient"):
            return self.kernels.zeros(like.size, like.dtype)

    @property
    def gradient(self) -> Any:
        """The gradient of all values; where updates are `in_rows` there is room for it once one is not."""
        if self._gradient is None:
            self._gradient = self._zeros(self.values)
        return self._gradient

    def up(self, values: Array | None, optimizer: State) -> None:
        """Take what the host has; without `values` the optimizer alone."""
        if values is not None:
            self.put(values)
        for name, there in self.optimizer.items():
            self.kernels.put(there, optimizer[name])
        self.is_ahead = False

    def put(self, values: Array) -> None:
        """Take the host's values alone."""
        self.kernels.put(self.values, values)

    def down(self, optimizer: State) -> None:
        """Bring the optimizer to the host, if it has changed; the values are there."""
        for name, there in self.optimizer.items() if self.is_ahead else ():
            optimizer[name][...] = self.kernels.host(there)
        self.is_ahead = False

    def update(self, new: Array, gradients: Sequence[Array], where: slice, step: int, tuning: Tuning) -> None:
        """Update elements `where` by the sum of `gradients`, in their order, and leave the values in `new`; all are the host's, and may be used again then."""
        values, gradient = self.values[where], self.gradient[where]
        self.kernels.put(gradient, gradients[0])
        for term in gradients[1:]:
            there = self.kernels.gpu.scratch("one of several gradients", term.size, term.dtype.str[1:])[: term.size]
            self.kernels.put(there, term)
            self.kernels.add(gradient, there)
        self._step(values, gradient, where, step, tuning)
        values.get(out=new)

    def update_rows(self, new: Array, where: Array, of: Array, data: Array, step: int, tuning: Tuning) -> None:
        """Update rows `where` (k,) of the table `new` (n, width) of the host, and leave them there.

        The gradient of each is the sum, in their order, of those rows i of `data` for which it is where[of[i]].
        """
        kernels, shape = self.kernels, (where.size, new.shape[1])
        ids, total = self._up("numbers", where), self._touched("gradient", shape)
        total.fill(0)
        kernels.add_rows(total, self._up("places", of), self._up("gradients", data))
        tables = [there.reshape(-1, shape[1]) for there in (self.values, *self.optimizer.values())]
        parts = [self._touched(name, shape) for name in ("values", *self.optimizer)]
        for table, part in zip(tables, parts, strict=True):
            kernels.take(table, ids, part)
        values, *state = (part.reshape(-1) for part in parts)
        self._apply(values, total.reshape(-1), dict(zip(self.optimizer, state, strict=True)), step, tuning)
        for table, part in zip(tables, parts, strict=True):
            kernels.put_rows(table, ids, part)
        new[where] = kernels.host(parts[0])

    def _touched(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Any:
        n, of = int(np.prod(shape)), np.dtype(dtype or self.values.dtype)
        return self.kernels.gpu.scratch(f"touched rows' {name}", n, of.str[1:])[:n].reshape(shape)

    def _up(self, name: str, here: Array) -> Any:
        there = self._touched(name, here.shape, here.dtype)
        self.kernels.put(there, here)
        return there

    def step(self, step: int, tuning: Tuning) -> None:
        """Update all values by `gradient`; what comes of it stays there, and nobody waits."""
        self._step(self.values, self.gradient, slice(None), step, tuning)

    def _step(self, values: Any, gradient: Any, where: slice, step: int, tuning: Tuning) -> None:
        self._apply(values, gradient, {name: there[where] for name, there in self.optimizer.items()}, step, tuning)

    def _apply(self, values: Any, gradient: Any, own: State, step: int, tuning: Tuning) -> None:
        if self.chain is None:
            self.kernels.add(values, gradient)
        else:
            self.chain.apply(self.kernels, values, values, gradient, own, step, tuning.rate, tuning.memory)
        self.is_ahead = True
