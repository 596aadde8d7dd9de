"""Make a store's updates on a device: its newest values and its optimizer lie there, and what an update leaves comes to the host for whoever reads.

    host     sum of gradients                new version                  versions, windows, answers; the optimizer where it is asked for
                   | up                          ^ down
    device     gradient  ->  update  ->  newest values; optimizer         by the kernels that passes run on
"""

from __future__ import annotations

from typing import Any

from mpidml.core.role import Array
from mpidml.optim.base import Chain, State
from mpidml.sync.base import Tuning


class OnDevice:
    """The device's side of a store: `values` (n,), the newest, and the arrays of `chain`, its optimizer, by `kernels` (`mpidml_kernels.cuda`).

    Cost of an update: n values up, n down, and the optimizer's pass at the speed of the device's memory. It waits for the device.
    """

    def __init__(self, kernels: Any, chain: Chain | None, values: Array, optimizer: State, whose: str = "a shard's") -> None:
        self.kernels, self.chain, self.is_ahead = kernels, chain, False
        with kernels.naming(f"{whose} values and gradient"):
            self.values, self.gradient = (kernels.zeros(values.size, values.dtype) for _ in range(2))
        self.optimizer: State = {}
        for name, array in optimizer.items():
            with kernels.naming(f"{whose} {name}"):
                self.optimizer[name] = kernels.zeros(array.size, array.dtype)
        self.up(values, optimizer)

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

    def update(self, new: Array, total: Array, where: slice, step: int, tuning: Tuning) -> None:
        """Update elements `where` by the gradient `total`, and leave the values in `new`; both are the host's, and may be used again then."""
        values, gradient = self.values[where], self.gradient[where]
        self.kernels.put(gradient, total)
        self._step(values, gradient, where, step, tuning)
        values.get(out=new)

    def step(self, step: int, tuning: Tuning) -> None:
        """Update all values by `gradient`; what comes of it stays there, and nobody waits."""
        self._step(self.values, self.gradient, slice(None), step, tuning)

    def _step(self, values: Any, gradient: Any, where: slice, step: int, tuning: Tuning) -> None:
        assert self.chain is not None
        own = {name: there[where] for name, there in self.optimizer.items()}
        self.chain.apply(self.kernels, values, values, gradient, own, step, tuning.rate, tuning.memory)
        self.is_ahead = True
