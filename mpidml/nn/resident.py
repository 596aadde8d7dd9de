"""Run passes of a network whose weights and gradient stay on the device: what comes is rows and labels, what goes back one number a head.

    host     | rows, labels |  progress(hi ..)  progress(lo ..)  | progress(0, 0) until the end | loss
    device      put -> forward -> losses -> backward: last layer ... first layer -> sums                       all in the order of the current stream

`progress(lo, hi)` says that the kernels which make g[lo:hi] have been given to the current stream: who reads it has to come after them there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpidml.nn.on_device import Pinned, there_of
from mpidml.nn.step import Buffers, Given, Inputs, Memory, Progress, Step

if TYPE_CHECKING:
    from mpidml.nn.network import Network


class Resident(Given):
    """One pass over m rows with flat weights `w` and gradient `g` of the device; the face of `Step` as far as `run`. The caller fills what is `Given`."""

    def __init__(self, net: Network, m: int, memory: Memory, w: Any, g: Any) -> None:
        kernels = net.device.kernels
        self.gpu, self.w, self.g = kernels.gpu, w, g
        there = there_of(memory, kernels)
        pinned: Memory = memory.once("pinned", lambda: Memory(memory.m, Pinned(self.gpu)))
        super().__init__(Inputs(net, m, pinned))
        buffers = Buffers(net, m, there)
        self.step = Step(net, buffers, w, g)
        self.sums, self.losses = kernels.zeros(len(net.heads), np.float64), self.gpu.pinned(len(net.heads), np.float64)
        self.came = [(buffers.x, self.x), *([(buffers.ids, self.ids), (buffers.salt, self.salt)] if net.random else [])]
        self.came += [(at.read, of.read) for at, of in zip(buffers.answers, self.answers, strict=True)]
        self.ended = self.gpu.cupy.cuda.Event(disable_timing=True)

    def run(self, scale: float, progress: Progress | None = None) -> float:
        """Return the sum of the losses and leave in `g` the gradient of that sum times `scale`; the pass has ended then.

        Without `progress` the host waits once; with it, it asks, and calls progress(0, 0) meanwhile.
        """
        stream = self.gpu.cupy.cuda.get_current_stream()
        for there, here in self.came:
            there.set(here, stream)
        for group in self.step.forward:
            for function, arguments in group.thunks:
                function(*arguments)
            if progress is not None:
                progress(0, 0)
        for h, (weight, lose) in enumerate(self.step.losses):
            with self.gpu.totals_at(self.sums[h : h + 1]):
                lose(scale * weight)
        for group in self.step.backward:
            for function, arguments in group.thunks:
                function(*arguments)
            if progress is not None:
                progress(group.lo, group.hi)
        self.sums.get(stream=stream, out=self.losses, blocking=False)
        self.ended.record(stream)
        while progress is not None and not self.ended.done:
            progress(0, 0)
        self.ended.synchronize()
        loss = 0.0
        for (weight, _), found in zip(self.step.losses, self.losses.tolist(), strict=True):
            loss += weight * found
        return loss
