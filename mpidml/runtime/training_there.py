"""The program of a worker whose gradient lies on a device until servers are sent it: what the worker makes of it is made there.

    host     w, as it was read                            the gradient, or in its place its codes, as they are pushed
                | up                                        ^ down
    device      w -> pass -> gradient -> links or optimizer of the worker -> codes, and what they leave

Where nothing is made of a gradient it comes as the pass makes it final, range by range, while the rest is computed (`nn/on_device.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml.core.role import Array, Lease
from mpidml.optim.base import State
from mpidml.ps.on_device import OnDevice
from mpidml.ps.task import Turn
from mpidml.runtime.training import Training


def stays(strategy: Any) -> bool:
    """Tell whether workers make something of their gradients before they push them, and compute on a device."""
    return strategy.net.device.kernels is not None and (strategy.codes is not None or strategy.before is not None or strategy.worker_chain is not None)


class TrainingThere(Training):
    """A worker's part; weights and gradient of its passes, and the arrays of its links or optimizer, lie on the network's device.

    Cost of a step beside the pass's own: the weights up, and where there are no codes the gradient down, of which nothing is hidden.
    """

    def __init__(self, strategy: Any, worker: int) -> None:
        """Allocate."""
        super().__init__(strategy, worker)
        self.kernels = kernels = strategy.net.device.kernels
        self.values = self.flats[0] if self.flats else strategy.views[0]
        self.there = OnDevice(kernels, strategy.worker_chain, self.values, self.state or {}, "a worker's")
        with kernels.naming("a worker's sum of gradients"):
            self.summand = kernels.zeros(self.summand.size, self.summand.dtype)

    @property
    def arithmetic(self) -> Any:
        """The device's."""
        return self.kernels

    def kept(self) -> State:
        """Bring what is kept to the host, and return it."""
        self.there.down(self.state or {})
        return super().kept()

    def refresh(self) -> None:
        """Let the device know what was changed in what is kept."""
        self.there.up(self.values, self.state or {})

    def _sum_up(self, rows: Array, batch: int, w: Array, g: Array, scale: float, report: Callable[[int, int], None] | None) -> float:
        self.there.put(w)
        return super()._sum_up(rows, batch, self.there.values, self.there.gradient, scale, report)

    def _gradient(self, report: Callable[[int, int], None] | None) -> tuple[Array, Lease]:
        if self.strategy.codes is None:
            return super()._gradient(report)
        g: Any = self.there.gradient
        return g, Lease(g)  # which ends before the next pass begins, for it is encoded as it is pushed

    def _add_gradient(self) -> None:
        if self.strategy.codes is None:
            super()._add_gradient()

    def _optimize(self, g: Array, w: Array, turn: Turn) -> None:
        there = self.there
        self._change(there.gradient, there.optimizer, there.values, turn)
        there.is_ahead = True
        if self.strategy.codes is None:
            there.gradient.get(out=g)
