"""Cut a range of layers out of a network: a stage, with parameters of its own, that meets its neighbours in four arrays.

            x  ->  layers lo .. hi - 1  -> out        forward, of one microbatch
            dx <-                       <- dy         backward

What a network computes in one piece its stages compute one after the other, by the same kernels on the same shapes, so to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mpidml.core import rng
from mpidml.core.flat import Array, FlatParams
from mpidml.nn.layers.base import Group, Layer, Pass, Thunk
from mpidml.nn.on_device import OnDevice, there_of
from mpidml.nn.split.loss import Ending
from mpidml.nn.split.part import fill_places, index_of, is_shared
from mpidml.nn.split.whole import Parts
from mpidml.nn.step import Buffers, Edges, Memory, Step

if TYPE_CHECKING:
    from mpidml.nn.network import Network


class Identity(Layer):
    """Hand on what comes: the layer of a stage that has none."""

    ends: ClassVar[bool] = True

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count nothing."""
        return 0

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Copy."""
        return [(backend.copy, (a.out, a.x))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Copy back."""
        return [Group([(backend.copy, (a.dx, a.d))])] if a.dx is not None else []


def n_cuts(net: Network) -> int:
    """Return how many layers there are to cut between: where there are heads, those of the trunk, and all heads go with the last stage."""
    return len(net.trunk) if net.given_heads else len(net.layers)


class Stage:
    """Layers [lo, hi) of the `n_cuts` that `net` can be cut into, the last ones with the heads; `net` lends layout and layers, and may be as large as it likes.

    With `parts` of the network's layers it is this rank's part of the stage: its tensors are parts of the network's.
    To `Step` and `Buffers` it is a network: its `layers`, `sources`, `widths` are its own, numbered from 0. `start`, `stop`: where the stage's parameters
    lie within the network's flat ones. A stage without layers hands on. Nobody wants the gradient of the first one's input; the last one computes the losses.
    What all ranks that have parts have comes first. Where rows are `spread` over them, the gradients of these `n_summed` parameters alone are summed.
    """

    split: ClassVar[bool] = False

    def __init__(self, net: Network, lo: int, hi: int, is_first: bool, is_last: bool, parts: Parts | None = None) -> None:
        self.net, self.lo, self.hi, self.is_first, self.is_last = net, lo, hi, is_first, is_last
        layers: Sequence[Layer] = net.layers if parts is None else parts.layers
        n, end = n_cuts(net), len(layers)
        numbers = [*range(lo, hi), *(range(n, end) if is_last else ())]
        self.places = [net.place(i) if net.tensor_names(i) else -1 for i in numbers]
        self._names = [net.tensor_names(i) for i in numbers]
        self.layers: list[Layer] = [layers[i] for i in numbers]
        self.n_features = layers[lo - 1].n_out if lo else net.n_features
        if lo == hi:  # nothing but what hands on, before the heads if there are any
            same = Identity()
            same.connect(lo, self.n_features, None)
            self.layers.insert(0, same)
            self.places.insert(0, -1)
            self._names.insert(0, {})
            numbers.insert(0, lo - 1)
        self.widths = [layer.n_out for layer in self.layers]
        at = {number: j for j, number in enumerate(numbers)}
        self.sources = [-1 if j == 0 else at[net.sources[number]] for j, number in enumerate(numbers)]
        self.heads = net.heads if is_last else ()
        self.endings = [Ending(head.loss, head.n_outputs) for head in self.heads] if parts is None else list(parts.endings if is_last else ())
        self.ends = [at[end] for end in net.ends] if is_last else []
        self.first = next((j for j, names in enumerate(self._names) if names), len(numbers)) if is_first else -1
        self.spread = None if parts is None else parts.spread
        tensors = [(self._names[j][name], shape, is_shared(layer, name)) for j, layer in enumerate(self.layers) for name, shape in layer.tensors]
        has_own = self.spread is not None and self.spread.size > 1
        is_cut = has_own or (parts is not None and self.spread is None)  # a mix of one rank is as the network
        tensors.sort(key=lambda tensor: is_cut and not tensor[2])
        self.params = FlatParams([(full, shape) for full, shape, _ in tensors])
        self.n_summed = sum(prod(shape) for _, shape, is_on_all in tensors if is_on_all or not has_own)
        self.dtype, self.backend, self.device = net.dtype, net.backend, net.device
        self.n_params, self.n_out = self.params.size, self.widths[-1]
        names = [full for of in self._names for full in of.values()]
        self.start = min((net.params.slices[name].start for name in names), default=net.start(lo))
        self.stop = max((net.params.slices[name].stop for name in names), default=self.start)
        self.random = any(layer.random for layer in self.layers)

    def elements(self) -> tuple[Array, Array]:
        """Return of each parameter its place in the network's flat ones, int64 (n_params,), and whether other parts of the stage have it, too."""
        places, shared = np.empty(self.n_params, np.int64), np.zeros(self.n_params, bool)
        for layer, names in zip(self.layers, self._names, strict=True):
            for name, index in index_of(layer).items():
                full = names[name]
                fill_places(self.net.params.slices[full].start, self.net.params.shapes[full], index, self.params.view(places, full))
                shared[self.params.slices[full]] = is_shared(layer, name)
        return places, shared

    def shared(self) -> list[slice]:
        """Return the ranges of its parameters that other parts of the stage have, too."""
        return [
            self.params.slices[names[name]]
            for layer, names in zip(self.layers, self._names, strict=True)
            for name, _ in layer.tensors
            if is_shared(layer, name)
        ]

    def layer_views(self, i: int, flat: Array) -> dict[str, Array]:
        """Return layer i's tensors by their own names as views of `flat`, this stage's parameters."""
        return {name: self.params.view(flat, full) for name, full in self._names[i].items()}

    def offset(self, i: int) -> int:
        """Return where layer i's tensors begin in the stage's flat buffer (0 if it has none)."""
        return min((self.params.slices[full].start for full in self._names[i].values()), default=0)

    def init(self, seed: int) -> Array:
        """Return initial weights: those of the network, whatever it is cut into; no others are drawn."""
        flat: Array = self.backend.zeros(self.n_params, self.dtype)
        for i, layer in enumerate(self.layers):
            if self._names[i]:
                layer.initial(rng.stream(seed, "init", self.places[i]), self.layer_views(i, flat))
        return flat

    def gradient_parts(self, adding: bool = False) -> tuple[list[slice], list[slice]]:
        """Return which ranges of the gradient the way back to the input makes, and which ones what is left of it; `adding`: but those that layers add."""
        found: tuple[list[slice], list[slice]] = [], []
        for layer, names in zip(self.layers, self._names, strict=True):
            for name, full in names.items():
                if not (adding and name in layer.adds):
                    found[name in layer.apart].append(self.params.slices[full])
        return found

    def bind(self, m: int, w: Any, g: Any, memory: Memory, edges: Edges, total: Any = None) -> Step | OnDevice:
        """Return the pass of m rows on weights `w` and gradient `g`, with activations in `memory` and `edges`; with `total` layers add to that what they can.

        All three are of the host, or where passes run on a device all of that.
        """
        if self.device.kernels is not None:
            early, late = self.gradient_parts()
            own = [part for parts in self.gradient_parts(adding=True) for part in parts]
            added = [] if total is None else [part for part in (*early, *late) if part not in own]
            return OnDevice(self, m, memory, w, g, edges, (early, late), total, added)
        return Step(self, Buffers(self, m, memory, edges), w, g, edges.dx, total)

    def bring(self, w: Any, memory: Memory) -> None:
        """Bring the weights with which rows are scored to where that is done, before the first of them, if they are not there."""
        if self.device.kernels is not None and isinstance(w, np.ndarray):
            self.device.kernels.put(self._weights(there_of(memory, self.device.kernels)), w)

    def _weights(self, there: Memory) -> Array:
        """Return where the weights lie on the device."""
        found: Array = there.once("w", lambda: there.backend.zeros(self.n_params, self.dtype))
        return found

    def scoring(self, m: int, w: Any, memory: Memory, x: Array, out: Array | None) -> tuple[list[Thunk], list[Array]]:
        """Return what scores m rows of `x`, dropout off, with activations in `memory`, and the outputs: of the heads, or `out`, which is filled.

        On a device the weights are those that `bring` has brought, unless `w` is there.
        """
        kernels = self.device.kernels
        if kernels is None:
            return self._scoring(m, w, memory, x, out)
        there = there_of(memory, kernels)
        rows = there.rows("x", m, self.n_features, self.dtype)
        leaves = None if out is None else there.rows("leaves", m, self.n_out, self.dtype)
        thunks, outs = self._scoring(m, self._weights(there) if isinstance(w, np.ndarray) else w, there, rows, leaves)
        landed = [memory.rows(("landed", h), m, of.shape[1], self.dtype) for h, of in enumerate(outs)]
        back: list[tuple[Any, Array]] = [*zip(outs, landed, strict=True), *([] if out is None else [(leaves, out)])]
        return [(kernels.put, (rows, x)), *thunks, *((of.get, (None, "C", here)) for of, here in back if here.size)], landed

    def _scoring(self, m: int, w: Array, memory: Memory, x: Array, out: Array | None) -> tuple[list[Thunk], list[Array]]:
        backend, arrays, thunks = memory.backend, {-1: x}, list[Thunk]()
        for i, (layer, source) in enumerate(zip(self.layers, self.sources, strict=True)):
            hands_on = not self.is_last and i == len(self.layers) - 1
            if layer.training_only:
                arrays[i] = arrays[source]
                if hands_on:
                    thunks.append((backend.copy, (out, arrays[i])))
                continue
            arrays[i] = out if hands_on and out is not None else memory.rows(("out", i), m, layer.n_out, self.dtype)
            kept = layer.lent(memory.kept(i, layer, self.dtype), m)
            thunks += layer.forward(backend, Pass(arrays[source], arrays[i], kept, self.layer_views(i, w)))
        outs = []
        for end, ending in zip(self.ends, self.endings, strict=True):
            more, whole = ending.whole_outputs(backend, arrays[end])
            thunks += more
            outs.append(whole)
        return thunks, outs
