"""Run one forward and backward pass as a tape: a flat list of kernel calls whose arguments were all made beforehand.

    x -> layer 0 -> layer 1 -> ... -> loss             forward, outputs kept
    g[0:..] <- layer 0 <- layer 1 <- ... <- loss       backward: gradient elements become final from the end of g to its start
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidml.core import rng
from mpidml.core.flat import Array
from mpidml.nn.layers import Dense, Group, Thunk

if TYPE_CHECKING:
    from mpidml.nn.network import Network

Progress = Callable[[int, int], Any]


class Buffers:
    """Inputs, outputs and their gradients for m rows; shared by all steps of one (m, slot), whatever weights they use.

    `outputs[i]` and `deltas[i]` belong to layer i; the gradient of the last output takes its place, and so does that of a dropped output.
    """

    def __init__(self, net: Network, m: int) -> None:
        self.x = np.zeros((m, net.n_features), net.dtype)
        self.y = np.zeros(m, np.int64)
        self.ids = np.arange(m, dtype=np.int64)
        self.salt = np.zeros(1, np.uint64)
        self.targets = np.zeros((m, net.n_outputs), net.dtype) if net.loss == "squared_error" else None
        self.outputs = [np.zeros((m, width), net.dtype) for width in net.widths]
        self.deltas: list[Array] = [self.outputs[-1]]
        for layer, out in zip(net.layers[:0:-1], self.outputs[-2::-1], strict=True):
            self.deltas.insert(0, np.zeros_like(out) if isinstance(layer, Dense) else self.deltas[0])


class Step:
    """One pass over m rows with weights `w` and gradient `g`, both flat and kept alive by the step.

    The caller fills `x` (m, n_features), `y` int64 (m,), and for dropout `ids` int64 (m,) and `salt` uint64 (1,), the key of this pass.
    With the squared error it fills `targets` (m, n_outputs), from labels by `load_labels`.
    """

    def __init__(self, net: Network, buffers: Buffers, w: Array, g: Array) -> None:
        self.w, self.g = w, g
        self.x, self.y, self.ids, self.salt, self.targets = buffers.x, buffers.y, buffers.ids, buffers.salt, buffers.targets
        backend = net.backend
        inputs = [buffers.x, *buffers.outputs[:-1]]
        first = next(i for i, layer in enumerate(net.layers) if isinstance(layer, Dense))
        forward: list[Group] = []
        backward: list[Group] = []
        for i, (layer, x, out, d) in enumerate(zip(net.layers, inputs, buffers.outputs, buffers.deltas, strict=True)):
            if isinstance(layer, Dense):
                parameters, gradients, at = net.layer_views(i, w), net.layer_views(i, g), net.offset(i)
                forward.append(Group(layer.forward(backend, x, out, parameters)))
                groups = layer.backward(backend, x, out, d, buffers.deltas[i - 1] if i > first else None, parameters, gradients, net.split and i == first)
                backward[:0] = [Group(group.thunks, group.lo + at, group.hi + at) if group.hi else group for group in groups]
            else:
                key, own = np.zeros(1, np.uint64), np.array([rng.key(0, "dropout", i)], np.uint64)
                make_key = (np.bitwise_xor, (buffers.salt, own, key))  # layers of one width must not share a mask
                forward.append(Group([make_key, *layer.forward(backend, x, out, buffers.ids, key)]))
                backward[:0] = layer.backward(backend, d, buffers.ids, key) if i > first else []
        self.forward, self.backward = forward, backward
        self._forward = _flat(forward)
        self._backward = _flat(backward)
        self._loss = backend.softmax_xent if net.loss == "cross_entropy" else backend.squared_error
        self._loss_arguments = buffers.outputs[-1], buffers.y if buffers.targets is None else buffers.targets

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
        """Fill `targets` one-hot from the labels in `y`; nothing to do for the cross-entropy, which reads `y` itself."""
        if self.targets is not None:
            one_hot(self.y, self.targets)


def one_hot(y: Array, out: Array) -> None:
    """Compute out[i, j] = 1 if j == y[i] else 0."""
    np.equal(y[:, None], np.arange(out.shape[1]), out=out, casting="unsafe")


def _flat(groups: list[Group]) -> tuple[Thunk, ...]:
    return tuple(thunk for group in groups for thunk in group.thunks)
