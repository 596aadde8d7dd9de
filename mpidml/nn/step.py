"""Run one forward and backward pass as a tape: a flat list of kernel calls whose arguments were all made beforehand.

    x -> layer 0 -> layer 1 -> ... -> loss             forward, outputs kept
    g[0:..] <- layer 0 <- layer 1 <- ... <- loss       backward: gradient elements become final from the end of g to its start

Where several heads take one output, the last head's gradient of it is written, that of each other head is added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.heads import Answers
from mpidml.nn.layers.base import Group, Layer, Pass, Thunk

if TYPE_CHECKING:
    from mpidml.nn.network import Network
    from mpidml.nn.stage import Stage

Progress = Callable[[int, int], Any]


class Edges(NamedTuple):
    """Arrays of m rows by which a stage of a network meets its neighbours: its input and output, and the gradients of both. None: the stage's own."""

    x: Array | None = None
    out: Array | None = None
    dy: Array | None = None
    dx: Array | None = None


ALONE = Edges()


WORDS = {
    "x": "the rows", "w": "the weights", "g": "the gradient", "dy": "the gradient of the output", "dx": "the gradient of the input", "ids": "the rows' numbers",
    "out": "the output of layer", "inner": "the gradient of the input of layer", "kept": "what is kept of layer", "answers": "what is learnt by head",
}  # fmt: skip


class Memory:
    """Arrays by name, each made once with room for `m` rows and lent for as many as are asked for.

    They lie where those of `backend` do, and arithmetic on them is its.
    """

    def __init__(self, m: int, backend: Any) -> None:
        self.m, self.backend = m, backend
        self.arrays: dict[Any, Any] = {}

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` made the first time."""
        if name not in self.arrays:
            with self.backend.naming(_words(name)):
                self.arrays[name] = make()
        return self.arrays[name]

    def rows(self, name: Any, m: int, width: int, dtype: DTypeLike) -> Array:
        """Return an array (m, width), contiguous."""
        array: Array = self.once(name, lambda: self.backend.zeros((self.m, width), dtype))
        return array if m == self.m else array[:m]

    def kept(self, i: int, layer: Layer, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return the buffers of layer i."""
        found: tuple[Array, ...] = self.once(("kept", i), lambda: tuple(map(self.backend.here, layer.kept(self.m, dtype))))
        return found


def _words(name: Any) -> str:
    """Say what an array of a memory is, by its name: of a layer or a head, from 1 up."""
    kind, *numbers = name if isinstance(name, tuple) else (name,)
    return " ".join([WORDS.get(kind, str(kind)), *(str(number + 1) for number in numbers)])


class Inputs:
    """What m rows are to a pass, out of a `memory`: `x`, what each head learns of them, `ids` and `salt`; `y` is that of several heads."""

    def __init__(self, net: Network | Stage, m: int, memory: Memory, x: Array | None = None) -> None:
        once, backend, dtype = memory.once, memory.backend, net.dtype
        self.x = memory.rows("x", m, net.n_features, dtype) if x is None else x
        self.answers = [once(("answers", h), partial(Answers.of, head, memory.m, dtype, backend)).first(m) for h, head in enumerate(net.heads)]
        self.y = memory.rows("y", m, sum(len(head.columns) for head in net.heads), np.float64)
        self.ids = once("ids", lambda: backend.here(np.arange(memory.m, dtype=np.int64)))[:m]
        self.salt = once("salt", lambda: backend.zeros(1, np.uint64))


class Buffers(Inputs):
    """Inputs, outputs and their gradients for m rows, out of a `memory` that all steps of a slot share, whatever weights they use and however many rows they have.

    `outputs[i]`, `deltas[i]` and `kept[i]` belong to layer i, and so does `inner[i]`, the gradient of its input; that of an output which a loss takes
    takes its place, and that of the input of a layer that works in place the place of that of its output.
    """

    def __init__(self, net: Network | Stage, m: int, memory: Memory, edges: Edges = ALONE) -> None:
        super().__init__(net, m, memory, edges.x)
        rows, dtype, self.backend = memory.rows, net.dtype, memory.backend
        self.outputs = [
            edges.out if edges.out is not None and i == len(net.widths) - 1 else rows(("out", i), m, width, dtype) for i, width in enumerate(net.widths)
        ]
        self.kept = [layer.lent(memory.kept(i, layer, dtype), m) for i, layer in enumerate(net.layers)]
        self.deltas, self.inner = list(self.outputs), list(self.outputs)
        if edges.dy is not None:
            self.deltas[-1] = edges.dy
        self.added: set[int] = set()  # layers whose inner gradient is added to that of another head
        taken: set[int] = set()
        for i in reversed(range(len(net.layers))):
            source = net.sources[i]
            if source >= 0:
                self.inner[i] = self.deltas[i] if net.layers[i].in_place else rows(("inner", i), m, net.widths[source], dtype)
            elif edges.dx is not None:
                self.inner[i] = self.deltas[i] if net.layers[i].in_place else edges.dx
            if source in taken:
                self.added.add(i)
            elif source >= 0:
                self.deltas[source] = self.inner[i]
                taken.add(source)


class Given:
    """What the caller of a pass fills: `x` (m, n_features), `y` int64 (m,), and if the network is random `ids` int64 (m,) and `salt` uint64 (1,), the key of the pass.

    With a loss that reads values it fills `targets` (m, n_outputs), from labels by `load_labels`. `load` fills them of all heads.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.x, self.ids, self.salt, self.answers = inputs.x, inputs.ids, inputs.salt, inputs.answers
        if self.answers:
            self.y, self.targets = inputs.answers[0].y, inputs.answers[0].targets
        self._columns = inputs.y

    def load_labels(self) -> None:
        """Fill `targets` from the labels in `y`; nothing to do for a loss that reads `y` itself."""
        self.answers[0].load_labels()

    def load(self, y: Array, rows: Array) -> None:
        """Take `rows` of all labels, int64 (n,), of all targets (n, n_outputs) in the network's dtype, or of the columns of several heads, float64."""
        if self._columns.shape[1]:
            y.take(rows, 0, self._columns, "clip")
            for each in self.answers:
                each.load(self._columns)
        elif y.ndim == 1:
            y.take(rows, 0, self.y, "clip")
            self.load_labels()
        else:
            y.take(rows, 0, self.targets, "clip")


class Step(Given):
    """One pass over m rows with weights `w` and gradient `g`, both flat and kept alive by the step; all arrays lie where the buffers do.

    `left`: where the gradient of the input is to be left, if somebody wants it. `total`: to which gradients are added that layers can add; they do not
    come to `g`.
    """

    def __init__(self, net: Network | Stage, buffers: Buffers, w: Array, g: Array, left: Array | None = None, total: Array | None = None) -> None:
        super().__init__(buffers)
        self.w, self.g = w, g
        backend, deltas = buffers.backend, buffers.deltas
        self.delta = deltas[0]  # the gradient of the first layer's output, as its backward leaves it
        self.forward: list[Group] = []
        self.backward: list[Group] = []
        for i, (layer, source, out, kept) in enumerate(zip(net.layers, net.sources, buffers.outputs, buffers.kept, strict=True)):
            x, dx = buffers.outputs[source] if source >= 0 else buffers.x, buffers.inner[i] if i > net.first else None
            at = net.offset(i)
            gradients, adding = net.layer_views(i, g), total is not None and bool(layer.adds)
            if total is not None:
                gradients |= {name: view for name, view in net.layer_views(i, total).items() if name in layer.adds}
            a = Pass(x, out, kept, net.layer_views(i, w), deltas[i], dx, gradients, buffers.ids, buffers.salt, adding)
            self.forward.append(Group(layer.forward(backend, a)))
            if i >= net.first:
                groups = layer.backward(backend, a, net.split and i == net.first)
                groups = [group._replace(lo=group.lo + at, hi=group.hi + at) if group.hi else group for group in groups]
                if dx is not None and i in buffers.added:
                    groups.append(Group([(backend.add, (deltas[source].reshape(-1), dx.reshape(-1)))]))
                self.backward[:0] = groups
        if left is not None and left is not buffers.inner[0]:  # a layer that works in place has left it where it was
            self.backward.append(Group([(backend.copy, (left, buffers.inner[0]))]))
        self._forward = flat(self.forward)
        self._backward = flat(self.backward)
        self.weight_thunks = flat([group for group in self.backward if group.apart])
        self.input_thunks = flat([group for group in self.backward if not group.apart])
        self.losses = [
            (head.weight, ending.bind(backend, buffers.outputs[end], of.read))
            for head, ending, end, of in zip(net.heads, net.endings, net.ends, buffers.answers, strict=True)
        ]

    def run(self, scale: float, progress: Progress | None = None) -> float:
        """Return the sum of the losses and leave in `g` the gradient of that sum times `scale` (1 / global batch for a mean).

        `progress(lo, hi)` is called after each group of kernels: g[lo:hi] is final, or lo == hi == 0 when there is only time to poll.
        Allocates no array.
        """
        if progress is not None:
            return self._run_in_groups(scale, progress)
        self.go()
        loss = self.lose(scale)
        self.go_back()
        return loss

    def go(self) -> None:
        """Make the forward pass, up to the losses."""
        for function, arguments in self._forward:
            function(*arguments)

    def go_back(self) -> None:
        """Make the backward pass, from the gradient of the output on."""
        for function, arguments in self._backward:
            function(*arguments)

    def go_back_to_input(self) -> None:
        """Make the part of the backward pass that the gradient of the input needs; that of the weights is left to `go_back_to_weights`."""
        for function, arguments in self.input_thunks:
            function(*arguments)

    def go_back_to_weights(self) -> None:
        """Make what `go_back_to_input` has left."""
        for function, arguments in self.weight_thunks:
            function(*arguments)

    def lose(self, scale: float) -> float:
        """Return the sum of the losses after a forward pass, and leave its gradient where the backward pass begins."""
        loss = 0.0
        for weight, lose in self.losses:
            loss += weight * lose(scale * weight)
        return loss

    def _run_in_groups(self, scale: float, progress: Progress) -> float:
        for group in self.forward:
            for function, arguments in group.thunks:
                function(*arguments)
            progress(0, 0)
        loss = self.lose(scale)
        for group in self.backward:
            for function, arguments in group.thunks:
                function(*arguments)
            progress(group.lo, group.hi)
        return loss


def flat(groups: Sequence[Group]) -> tuple[Thunk, ...]:
    """Return the calls of several groups, one after the other."""
    return tuple(thunk for group in groups for thunk in group.thunks)
