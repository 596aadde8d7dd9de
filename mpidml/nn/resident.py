"""Run passes of a network whose weights and gradient stay on the device: what comes is rows and labels, what goes back one number a head.

    host     | rows, labels |  progress(hi ..)  progress(lo ..)  | progress(0, 0) until the end | loss
    device      put -> forward -> losses -> backward: last layer ... first layer -> sums                       all in the order of the current stream

A pass is launched as one graph; with `progress` as one of the way to the losses and one of each group on the way back (`mpidml_kernels.recorded`).
`progress(lo, hi)` says that the kernels which make g[lo:hi] have been given to the current stream: who reads it has to come after them there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from mpidml_kernels.recorded import Recorded

from mpidml.nn.layers.base import Thunk
from mpidml.nn.on_device import Pinned, call, losing, there_of
from mpidml.nn.step import Buffers, Given, Inputs, Memory, Progress, Step, flat

if TYPE_CHECKING:
    from mpidml.nn.network import Network


class Resident(Given):
    """One pass over m rows with flat weights `w` and gradient `g` of the device; the face of `Step` as far as `run`. The caller fills what is `Given`.

    `delta`: the gradient of the first layer's output, on the device, as its backward leaves it.
    """

    def __init__(self, net: Network, m: int, memory: Memory, w: Any, g: Any) -> None:
        kernels = net.device.kernels
        self.gpu, self.w, self.g = kernels.gpu, w, g
        there = there_of(memory, kernels)
        pinned: Memory = memory.once("pinned", lambda: Memory(memory.m, Pinned(self.gpu)))
        super().__init__(Inputs(net, m, pinned))
        buffers = Buffers(net, m, there)
        self.step = Step(net, buffers, w, g)
        self.delta = self.step.delta
        self.sums, self.losses = kernels.zeros(len(net.heads), np.float64), self.gpu.pinned(len(net.heads), np.float64)
        self.came = [(buffers.x, self.x), *([(buffers.ids, self.ids), (buffers.salt, self.salt)] if net.random else [])]
        self.came += [(at.read, of.read) for at, of in zip(buffers.answers, self.answers, strict=True)]
        self.ended = self.gpu.cupy.cuda.Event(disable_timing=True)
        lose = losing(self.gpu, self.step, self.sums)

        def to_losses(scale: float) -> None:
            call(flat(self.step.forward))
            lose(scale)

        def whole(scale: float) -> None:
            to_losses(scale)
            call(flat(self.step.backward))

        self.to_losses, self.whole = Recorded(self.gpu, to_losses), Recorded(self.gpu, whole)
        self.back: list[tuple[Recorded, int, int]] = []
        thunks: list[Thunk] = []
        for group in self.step.backward:
            thunks += group.thunks
            if group.lo < group.hi or group is self.step.backward[-1]:
                self.back.append((Recorded(self.gpu, partial(call, tuple(thunks))), group.lo, group.hi))
                thunks = []

    def rows_there(self) -> Any:
        """Return the rows on the device for a caller that fills them there: from now on none come from the host."""
        self.came = [(there, here) for there, here in self.came if here is not self.x]
        return self.step.x

    def run(self, scale: float, progress: Progress | None = None) -> float:
        """Return the sum of the losses and leave in `g` the gradient of that sum times `scale`; the pass has ended then.

        Without `progress` the host waits once; with it, it asks, and calls progress(0, 0) meanwhile.
        """
        stream = self.gpu.cupy.cuda.get_current_stream()
        for there, here in self.came:
            there.set(here, stream)
        if progress is None:
            self.whole(scale)
        else:
            self.to_losses(scale)
            progress(0, 0)
            for back, lo, hi in self.back:
                back()
                progress(lo, hi)
        self.sums.get(stream=stream, out=self.losses, blocking=False)
        self.ended.record(stream)
        while progress is not None and not self.gpu.done(self.ended):
            progress(0, 0)
        self.ended.synchronize()
        loss = 0.0
        for (weight, _), found in zip(self.step.losses, self.losses.tolist(), strict=True):
            loss += weight * found
        return loss
