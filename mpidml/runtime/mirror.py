"""Keep weights and optimizer on a device while they are stepped, and on the host for whoever reads, saves and restores them between steps.

    host      weights, optimizer       restored, scored, saved, compared, told
                 | up   ^ down         at the begin of steps, and where they pause or end: not once in between
    device    weights, optimizer       passes and updates
"""

from __future__ import annotations

from typing import Any

from mpidml.core.role import Array
from mpidml.optim.base import State
from mpidml.ps.store import Store


class Mirror:
    """The device's side of `weights`, of the stores that hold ranges of them, and of what else is stepped, by `kernels` (`mpidml_kernels.cuda`)."""

    def __init__(self, kernels: Any, weights: Array) -> None:
        self.kernels = kernels
        self.pairs: list[tuple[Array, Any]] = []
        self.stores: list[tuple[Store, Store]] = []
        (self.weights,) = self.state({"the weights": weights}).values()

    def state(self, here: State) -> State:
        """Return arrays of the device for those of the host, which they go up from and down to."""
        there = {}
        for name, array in here.items():
            with self.kernels.naming(name):
                there[name] = self.kernels.zeros(array.size, array.dtype)
        self.pairs += [(here[name], there[name]) for name in here]
        return there

    def store(self, here: Store) -> Store:
        """Return what steps a store's range on the device; the store of the host has the weights in one live copy."""
        (values,) = here.versions
        there = Store([self.weights[here.lo : here.lo + values.size]], here.lo, here.width, self.kernels, here.chain)
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
