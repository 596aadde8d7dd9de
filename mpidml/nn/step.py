"""Run one forward and backward pass as a tape: a flat list of kernel calls whose arguments were all made beforehand.

    x -> layer 0 -> layer 1 -> ... -> loss             forward, outputs kept
    g[0:..] <- layer 0 <- layer 1 <- ... <- loss       backward: gradient elements become final from the end of g to its start
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Pass, Thunk

if TYPE_CHECKING:
    from mpidml.nn.network import Network

Progress = Callable[[int, int], Any]


class Buffers:
    """Inputs, outputs and their gradients for m rows; shared by all steps of a slot, whatever weights they use and however many rows they have.

    `outputs[i]`, `deltas[i]` and `kept[i]` belong to layer i; the gradient of the last output takes its place, and that of the input of a layer
    that works in place takes the place of that of its output.
    """

    def __init__(self, net: Network, m: int) -> None:
        self.x = np.zeros((m, net.n_features), net.dtype)
        self.y = np.zeros(m, np.int64)
        self.ids = np.arange(m, dtype=np.int64)
        self.salt = np.zeros(1, np.uint64)
        self.targets = np.zeros((m, net.n_outputs), net.dtype) if net.loss.from_values else None
        self.outputs = [np.zeros((m, width), net.dtype) for width in net.widths]
        self.kept = [layer.kept(m, net.dtype) for layer in net.layers]
        self.deltas: list[Array] = [self.outputs[-1]]
        for layer, out in zip(net.layers[:0:-1], self.outputs[-2::-1], strict=True):
            self.deltas.insert(0, self.deltas[0] if layer.in_place else np.zeros_like(out))

    def first(self, m: int) -> Buffers:
        """Return the same memory as buffers for its first m rows, contiguous as those are."""
        if m == len(self.y):
            return self
        part = copy(self)
        part.x, part.y, part.ids = self.x[:m], self.y[:m], self.ids[:m]
        part.targets = None if self.targets is None else self.targets[:m]
        part.outputs, part.deltas = [each[:m] for each in self.outputs], [each[:m] for each in self.deltas]
        part.kept = [tuple(each[:m] for each in kept) for kept in self.kept]
        return part


class Step:
    """One pass over m rows with weights `w` and gradient `g`, both flat and kept alive by the step.

    The caller fills `x` (m, n_features), `y` int64 (m,), and if the network is random `ids` int64 (m,) and `salt` uint64 (1,), the key of this pass.
    With a loss that reads values it fills `targets` (m, n_outputs), from labels by `load_labels`.
    """

    def __init__(self, net: Network, buffers: Buffers, w: Array, g: Array) -> None:
        self.w, self.g = w, g
        self.x, self.y, self.ids, self.salt, self.targets = buffers.x, buffers.y, buffers.ids, buffers.salt, buffers.targets
        backend, deltas = net.backend, buffers.deltas
        self.delta = deltas[0]  # the gradient of the first layer's output, as its backward leaves it
        inputs = [buffers.x, *buffers.outputs[:-1]]
        self.forward: list[Group] = []
        self.backward: list[Group] = []
        for i, (layer, x, out, kept) in enumerate(zip(net.layers, inputs, buffers.outputs, buffers.kept, strict=True)):
            dx, at = deltas[i - 1] if i > net.first else None, net.offset(i)
            a = Pass(x, out, kept, net.layer_views(i, w), deltas[i], dx, net.layer_views(i, g), buffers.ids, buffers.salt)
            self.forward.append(Group(layer.forward(backend, a)))
            if i >= net.first:
                groups = layer.backward(backend, a, net.split and i == net.first)
                self.backward[:0] = [Group(group.thunks, group.lo + at, group.hi + at) if group.hi else group for group in groups]
        self._forward = _flat(self.forward)
        self._backward = _flat(self.backward)
        self._fill = net.loss.fill
        self._loss = getattr(backend, net.loss.kernel)
        target = buffers.y if buffers.targets is None else buffers.targets
        self._loss_arguments = buffers.outputs[-1], target, *net.loss.constants(net.n_outputs, net.dtype)

    def run(self, scale: float, progress: Progress | None = None) -> float:
        """Return the sum of the losses and leave in `g` the gradient of that sum times `scale` (1 / global batch for a mean).

        `progress(lo, hi)` is called after each group of kernels: g[lo:hi] is final, or lo == hi == 0 when there is only time to poll.
        Allocates no array.
        """
        if progress is not None:
            return self._run_in_groups(scale, progress)
        for function, arguments in self._forward:
            function(*arguments)
        loss: float = self._loss(*self._loss_arguments, scale)
        for function, arguments in self._backward:
            function(*arguments)
        return loss

    def _run_in_groups(self, scale: float, progress: Progress) -> float:
        for group in self.forward:
            for function, arguments in group.thunks:
                function(*arguments)
            progress(0, 0)
        loss: float = self._loss(*self._loss_arguments, scale)
        for group in self.backward:
            for function, arguments in group.thunks:
                function(*arguments)
            progress(group.lo, group.hi)
        return loss

    def load_labels(self) -> None:
        """Fill `targets` from the labels in `y`; nothing to do for a loss that reads `y` itself."""
        if self.targets is not None:
            self._fill(self.y, self.targets)


def _flat(groups: list[Group]) -> tuple[Thunk, ...]:
    return tuple(thunk for group in groups for thunk in group.thunks)
