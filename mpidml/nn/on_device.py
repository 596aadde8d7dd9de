"""Run the passes of a network on a device, with host arrays for whoever feeds them and takes what they leave: to strategies, steps like any others.

    host      x, answers, w            progress(hi ..)   progress(lo ..)   loss, the end
                  |                          ^                 ^             ^
    copies        |                    | g[hi ..] |      | g[lo ..] |   | sums |         a stream of their own, after an event of each range
    compute   | put | forward | losses | backward: last layer | ... | first layer |      the current stream

All of a pass is given to the device at once; then the host waits, for one range after the other where it reports them, else for the end alone.
Forward, losses, and what makes each range are launched as a graph each (`mpidml_kernels.recorded`); copies and events are not part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from mpidml_kernels.recorded import Recorded

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Thunk
from mpidml.nn.step import ALONE, Buffers, Edges, Given, Inputs, Memory, Progress, Step, flat

if TYPE_CHECKING:
    from mpidml.nn.network import Network
    from mpidml.nn.stage import Stage

Slices = Sequence[slice]
Pairs = list[tuple[Any, Array]]  # of a device's array, and the host's


class Pinned:
    """To `Memory` a backend whose arrays are the host's, and stay where they are, so that the device copies from them and to them by itself."""

    def __init__(self, gpu: Any) -> None:
        self.zeros: Callable[..., Array] = gpu.pinned
        self.naming: Callable[[str], Any] = gpu.naming

    def here(self, a: Array) -> Array:
        """Return a copy."""
        array = self.zeros(a.shape, a.dtype)
        array[...] = a
        return array


def call(thunks: Iterable[Thunk]) -> None:
    """Make calls in their order."""
    for function, arguments in thunks:
        function(*arguments)


def losing(gpu: Any, step: Step, sums: Any) -> Callable[[float], None]:
    """Return what leaves the sum of each head's losses in `sums`, float64 of the device, and the gradient times `scale` where the way back begins."""

    def lose(scale: float) -> None:
        for h, (weight, loss) in enumerate(step.losses):
            with gpu.totals_at(sums[h : h + 1]):
                loss(scale * weight)

    return lose


def there_of(memory: Memory, kernels: Any) -> Memory:
    """Return the device's part of a slot's memory."""
    found: Memory = memory.once("there", lambda: Memory(memory.m, kernels))
    return found


class Range:
    """Kernels after which `slices` of the gradient are final: their copies, and what is waited for.

    `added`: of the same elements those that are added to another array of the host than `g`.
    """

    def __init__(self, gpu: Any, thunks: Sequence[Thunk], slices: Slices, there: Any, landed: Array, event: Callable[[], Any]) -> None:
        self.go = Recorded(gpu, partial(call, tuple(thunks))) if thunks else None
        self.slices = [part for part in slices if part.start < part.stop]
        self.copies: Pairs = [(there[part], landed[part]) for part in self.slices]
        self.made, self.landed = event(), event()


class OnDevice(Given):
    """One pass over m rows, on the device, with weights `w` and gradient `g` on the host; the face of `Step`, whose meaning it has.

    The caller fills what is `Given`, in pinned memory but for the `edges` that are the host's. Each pass brings the weights anew, since `w` may have
    changed: `n_params` elements there, and what the gradient has back. Where `w` is pageable, as a window of MPI is, the driver copies it through memory
    of its own, at about half the speed, and the host waits for that. (Memory of others is not pinned here: whoever frees it would have to tell.)
    The gradient lands in pinned memory, so that copies run while the device computes; from there the host copies it to `g`.
    Steps of one slot share the device's memory as they do the host's: weights, gradient, activations.

    `parts`: which ranges of the gradient the way back to the input makes, and which what is left; `total`, `added`: where ranges are added to, and which.

    Where `w`, `g` and `total` are of the device they stay there: no weights come, no gradient goes, and what `total` is for layers add to it there.
    Who reads `g` comes after the pass in the order of the current stream. `run` is for those of the host alone.
    """

    def __init__(
        self, net: Network | Stage, m: int, memory: Memory, w: Any, g: Any, edges: Edges = ALONE,
        parts: tuple[Slices, Slices] | None = None, total: Any = None, added: Slices = (),
    ) -> None:  # fmt: skip
        kernels = net.device.kernels
        self.gpu, self.backend, self.random = kernels.gpu, net.backend, net.random
        self.w, self.g, self.total, self.added = w, g, total, {(part.start, part.stop) for part in added}
        event = self._event
        there = there_of(memory, kernels)
        pinned: Memory = memory.once("pinned", lambda: Memory(memory.m, Pinned(self.gpu)))
        super().__init__(Inputs(net, m, pinned, edges.x))
        dy = None if edges.dy is None else there.rows("dy", m, net.widths[-1], net.dtype)
        dx = None if edges.dx is None else there.rows("dx", m, net.n_features, net.dtype)
        buffers = Buffers(net, m, there, Edges(dy=dy, dx=dx))
        if stays := not isinstance(w, np.ndarray):
            weights, gradient, landed, parts = w, g, np.zeros(0, net.dtype), ((), ())
        else:
            weights, gradient = (there.once(name, lambda: kernels.zeros(net.n_params, net.dtype)) for name in ("w", "g"))
            landed = pinned.once("g", lambda: self.gpu.pinned(net.n_params, net.dtype))
        self.landed, self.step = landed, (step := Step(net, buffers, weights, gradient, dx, total if stays else None))
        self.sums, self.losses = kernels.zeros(len(net.heads), np.float64), self.gpu.pinned(len(net.heads), np.float64)
        self.came = [(buffers.x, self.x), *([] if stays else [(weights, w)]), *([(buffers.ids, self.ids), (buffers.salt, self.salt)] if net.random else [])]
        self.learnt = [(at.read, of.read) for at, of in zip(buffers.answers, self.answers, strict=True)]
        self.out = [] if edges.out is None else [(buffers.outputs[-1], edges.out)]
        self.dy = [] if edges.dy is None else [(dy, edges.dy)]
        self.dx = [] if edges.dx is None else [(dx, edges.dx)]
        self.ended = event()
        early, late = parts if parts is not None else ((), (slice(0, net.n_params),))

        def made(thunks: Sequence[Thunk], slices: Slices) -> Range:
            return Range(self.gpu, thunks, slices, gradient, landed, event)

        self.forward = Recorded(self.gpu, partial(call, flat(step.forward)))
        self.lost = Recorded(self.gpu, losing(self.gpu, step, self.sums))
        self.ranges, thunks = list[Range](), list[Thunk]()
        for group in step.backward:
            thunks += group.thunks
            if group.lo < group.hi and not stays:
                self.ranges.append(made(thunks, [slice(group.lo, group.hi)]))
                thunks = []
        self.rest = made(thunks, [])
        self.whole = made(flat(step.backward), [*early, *late])
        self.to_input, self.to_weights = made(step.input_thunks, early), made(step.weight_thunks, late)

    def run(self, scale: float, progress: Progress | None = None) -> float:
        """Return the sum of the losses and leave in `g` the gradient of that sum times `scale`, as `Step.run` does.

        `progress(lo, hi)` is called once g[lo:hi] is final on the host, and progress(0, 0) while the host would wait. Without it the host waits once.
        """
        self._put(self.came)
        self.forward()
        self._lose(scale)
        for part in self.ranges:
            self._back(part)
        self._back(self.rest)
        self._end([(self.sums, self.losses)])
        if progress is not None:
            for part in self.ranges:
                while not self.gpu.done(part.landed):
                    progress(0, 0)
                self._take(part)
                progress(part.slices[0].start, part.slices[0].stop)
        self.ended.synchronize()
        for part in self.ranges if progress is None else ():
            self._take(part)
        return self._loss()

    def go(self) -> None:
        """Make the forward pass, up to the losses; what came may be overwritten then, and what goes to the next stage is there."""
        self._put(self.came)
        if not self.out:
            self.ended.record()
        self.forward()
        if self.out:
            self._fetch(self.out)
            self.ended.record()
        self.ended.synchronize()

    def lose(self, scale: float) -> float:
        """Return the sum of the losses after a forward pass, and leave its gradient where the backward pass begins."""
        self._lose(scale)
        self._fetch([(self.sums, self.losses)])
        self.ended.record()
        self.ended.synchronize()
        return self._loss()

    def go_back(self) -> None:
        """Make the backward pass, from the gradient of the output on."""
        self._put(self.dy)
        self._go_back(self.whole, self.dx)

    def go_back_to_input(self) -> None:
        """Make the part of the backward pass that the gradient of the input needs; that of the weights is left to `go_back_to_weights`."""
        self._put(self.dy)
        self._go_back(self.to_input, self.dx)

    def go_back_to_weights(self) -> None:
        """Make what `go_back_to_input` has left."""
        self._go_back(self.to_weights, [])

    def _go_back(self, part: Range, more: Pairs) -> None:
        self._back(part)
        self._end(more)
        self.ended.synchronize()
        self._take(part)

    def _event(self) -> Any:
        return self.gpu.cupy.cuda.Event(disable_timing=True)

    def _put(self, pairs: Pairs) -> None:
        """Bring the host's arrays, in the order of the current stream."""
        stream = self.gpu.cupy.cuda.get_current_stream()
        for there, here in pairs:
            if here.size:
                there.set(here, stream)

    def _fetch(self, pairs: Pairs, stream: Any = None) -> None:
        for there, here in pairs:
            if here.size:
                there.get(stream=stream, out=here, blocking=False)

    def _lose(self, scale: float) -> None:
        """Leave the sum of each head's losses on the device."""
        self._put(self.learnt)
        self.lost(scale)

    def _loss(self) -> float:
        loss = 0.0
        for (weight, _), found in zip(self.step.losses, self.losses.tolist(), strict=True):
            loss += weight * found
        return loss

    def _back(self, part: Range) -> None:
        """Make a part of the backward pass, and let what it makes be copied meanwhile."""
        if part.go is not None:
            part.go()
        part.made.record()
        self.gpu.copies.wait_event(part.made)
        if part.copies:
            self._fetch(part.copies, self.gpu.copies)
            part.landed.record(self.gpu.copies)

    def _end(self, more: Pairs) -> None:
        """Copy what else there is, behind all other copies; `ended` is the end of the pass."""
        self._fetch(more, self.gpu.copies)
        self.ended.record(self.gpu.copies)

    def _take(self, part: Range) -> None:
        """Put what has landed where it belongs."""
        for of in part.slices:
            if (of.start, of.stop) in self.added:
                assert self.total is not None
                self.backend.add(self.total[of], self.landed[of])
            else:
                self.g[of] = self.landed[of]
