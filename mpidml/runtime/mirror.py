"""Keep weights and optimizer on a device while they are stepped, and on the host for whoever reads, saves and restores them between steps.

    host      weights, optimizer       restored, scored, saved, compared, told
                 | up   ^ down         at the begin of steps, and where they pause or end: not once in between
    device    weights, optimizer       passes and updates
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpidml.core.role import Array
from mpidml.optim.base import State
from mpidml.ps.store import Store


class Mirror:
    """The device's side of arrays of the host, of the stores that hold some of them, and of what else is stepped, by `kernels` (`mpidml_kernels.cuda`)."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels
        self.pairs: list[tuple[Array, Any]] = []
        self.stores: list[tuple[Store, Store]] = []

    def array(self, name: str, here: Array) -> Any:
        """Return an array of the device for one of the host, which it goes up from and down to."""
        with self.kernels.naming(name):
            there = self.kernels.zeros(here.size, here.dtype)
        self.pairs.append((here, there))
        return there

    def beside(self, there: Any) -> Array:
        """Return an array of the host for one that the device has, with what that holds."""
        here: Array = self.kernels.host(there)
        self.pairs.append((here, there))
        return here

    def state(self, here: State) -> State:
        """Return such arrays by name."""
        return {name: self.array(name, array) for name, array in here.items()}

    def store(self, here: Store, versions: Sequence[Any]) -> Store:
        """Return what steps a store on the device, where its `versions` lie in these arrays, which go up and down by themselves."""
        there = Store(versions, here.lo, here.width, self.kernels, here.chain)
        there.add_state(self.state(here.optimizer))
        self.stores.append((here, there))
        return there

    def up(self) -> None:
        """Take what the host has; kernels that are started from now on find it."""
        for here, there in self.pairs:
            self.kernels.put(there, here)
        for a, b in self.stores:
            _count(b, a)

    def down(self) -> None:
        """Bring to the host what the device has; waits for it."""
        for here, there in self.pairs:
            here[...] = self.kernels.host(there)
        for a, b in self.stores:
            _count(a, b)


def _count(to: Store, of: Store) -> None:
    """Let one store know of as many steps as the other."""
    to.latest, to.n_whole, to.most_besides, to.besides = of.latest, of.n_whole, of.most_besides, of.besides
