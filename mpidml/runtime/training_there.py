"""The program of a worker whose gradient lies on a device until servers are sent it: what the worker makes of it is made there.

    host     w, as it was read                                     the gradient
                | up                                                 ^ down
    device      w -> pass -> gradient -> links or optimizer of the worker

    host     code of what w has become                             code, as it is pushed
                | up                                                 ^ down
    device      copy of w -> pass -> gradient -> links -> code, and what it leaves          where the run goes by codes

Where nothing is made of a gradient it comes as the pass makes it final, range by range, while the rest is computed (`nn/on_device.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpidml.core.role import Array, Lease
from mpidml.optim.base import State
from mpidml.ps.on_device import OnDevice
from mpidml.ps.task import Turn
from mpidml.runtime import scoring
from mpidml.runtime.training import Training


def stays(strategy: Any) -> bool:
    """Tell whether workers make something of their gradients before they push them, and compute on a device."""
    return strategy.net.device.kernels is not None and (strategy.codes is not None or strategy.before is not None or strategy.worker_chain is not None)


class TrainingThere(Training):
    """A worker's part; weights and gradient of its passes, and the arrays of its links or optimizer, lie on the network's device.

    Cost of a step beside the pass's own: the weights up and the gradient down, of which nothing is hidden, or in codes a code each way, for which the host
    waits. Memory there: the pass's weights and gradient, in codes one more for what is read meanwhile, one more for a batch in parts.
    """

    def __init__(self, strategy: Any, worker: int) -> None:
        """Allocate."""
        super().__init__(strategy, worker)
        kernels = strategy.net.device.kernels
        values = self.flats[0] if self.flats else strategy.views[0]
        self.there = OnDevice(kernels, strategy.worker_chain, values, self.state or {}, "a worker's")
        if strategy.codes is not None:
            self.flats = self._flats_there(kernels)
        self.stay(kernels)

    def _flats_there(self, kernels: Any) -> list[Any]:
        """Return two arrays of the device: reads come as codes, to what they change."""
        with kernels.naming("what a worker reads"):
            return [self.there.values, kernels.zeros(self.there.values.size, self.there.values.dtype)]

    def kept(self) -> State:
        """Bring what is kept to the host, and return it."""
        self.there.down(self.state or {})
        return super().kept()

    def refresh(self) -> None:
        """Let the device know what was changed in what is kept."""
        self.there.up(None, self.state or {})

    def finish(self, turn: Turn, report: Callable[[int, int], None] | None) -> dict[str, scoring.Scores]:
        """Score the final parameters, and bring them to the host."""
        found = super().finish(turn, report)
        self.final = self.kernels.host(self.final) if self.strategy.codes is not None else self.final
        return found

    def _sum_up(self, rows: Array, batch: int, w: Array, g: Array, scale: float, report: Callable[[int, int], None] | None) -> float:
        return super()._sum_up(rows, batch, self._weights(w), self.there.gradient, scale, report)

    def _weights(self, w: Array) -> Any:
        """Return what was read where it is computed with."""
        if not isinstance(w, np.ndarray):
            return w
        self.there.put(w)
        return self.there.values

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
        self._change(there.gradient, there.optimizer, w if self.strategy.codes is not None else there.values, turn)
        there.is_ahead = True
        if self.strategy.codes is None:
            there.gradient.get(out=g)
