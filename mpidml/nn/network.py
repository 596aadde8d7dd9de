"""Hold layers over one flat parameter buffer: a network has a layout, never values, so any array of the right length can be its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from mpidml_kernels import backend as kernels
from numpy.typing import DTypeLike

from mpidml.core import rng
from mpidml.core.csr import Csr
from mpidml.core.device import CPU, Device
from mpidml.core.errors import UserError
from mpidml.core.flat import Array, FlatParams
from mpidml.core.plugins import name_of
from mpidml.nn.heads import Head
from mpidml.nn.layers.base import Layer, Pass
from mpidml.nn.losses.base import Loss
from mpidml.nn.on_device import OnDevice
from mpidml.nn.resident import Resident
from mpidml.nn.split.loss import Ending
from mpidml.nn.step import Buffers, Memory, Step

N_STEPS_KEPT = 64


class Network:
    """A chain of layers with a loss; parameters are `layers.<i>.<tensor>` of the i-th layer that has any, in order.

    With `heads` the layers are a trunk, and each head's layers follow, `heads.<name>.<i>.<tensor>`; outputs of all heads lie side by side, and the
    loss is the sum of weight x loss. Without, the chain is the one head. `sources[i]`: the layer whose output layer i takes, -1 for the rows.

    Arithmetic is that of `backend`, a namespace of kernels, or in passes and scores that of the `device` where it has kernels of its own; all arrays that
    come and go are the host's. dtype is float32 or float64. Set `split` before the first `bind` to compute the
    first layer's weight gradient, which is finished last, in two parts, so that little is left to travel at the end (it takes about 2% longer).
    """

    def __init__(
        self, layers: Sequence[Layer], n_features: int, n_outputs: int, loss: Loss, dtype: DTypeLike, backend: Any, heads: Sequence[Head] = (),
        device: Device = CPU,
    ) -> None:  # fmt: skip
        """Connect the layers; ValueError, opened by the layer's number and type, where one does not fit. With heads, `loss` is that of the first."""
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise UserError(f"dtype: a network computes in float32 or float64, not {np.dtype(dtype)}; choose one of them")
        self.n_features, self.loss, self.dtype, self.backend, self.device = n_features, loss, np.dtype(dtype), backend, device
        self.n_outputs, self.given_heads = n_outputs, tuple(heads)
        self.heads = self.given_heads or (Head("", tuple(layers), n_outputs, loss),)
        self.endings = [Ending(head.loss, head.n_outputs) for head in self.heads]
        self.trunk = tuple(layers) if heads else ()
        self.layers: list[Layer] = []
        self.widths: list[int] = []
        self.sources: list[int] = []
        self.ends: list[int] = []  # of each head, its last layer
        self._names: dict[int, dict[str, str]] = {}
        self._connect(self.trunk, "layers", "", -1)
        for head in self.heads:
            source = len(self.trunk) - 1
            self._connect(head.layers, f"heads.{head.name}" if heads else "layers", f"head '{head.name}', " if heads else "", source, head.n_outputs)
            self.ends.append(len(self.layers) - 1)
        own = list(self._names)
        self.first = own[0]  # nobody wants the gradient of its input
        self.params = FlatParams([(self._names[i][name], shape) for i in own for name, shape in self.layers[i].tensors])
        self.n_params = self.params.size
        self.random = any(layer.random for layer in self.layers)
        self.split = False
        self._memory: dict[int, Memory] = {}  # of each slot, for the most rows so far
        self._steps: dict[tuple[int, int, int, int], Step | OnDevice | Resident] = {}
        self._bound: dict[tuple[int, int, int, int], tuple[Step | OnDevice | Resident, Any, Any]] = {}  # by id, which holds while the arrays are kept here

    def _connect(self, layers: Sequence[Layer], prefix: str, where: str, source: int, n_outputs: int | None = None) -> None:
        """Add a chain of layers that takes the output of layer `source`, and ends in `n_outputs` where they are given."""
        place = 0
        for j, layer in enumerate(layers):
            i, ends = len(self.layers), n_outputs is not None and j + 1 == len(layers)
            with naming(j, layer, where):
                self.widths.append(layer.connect(i, self.widths[source] if source >= 0 else self.n_features, n_outputs if ends else None))
                if ends and not layer.ends:
                    raise ValueError("cannot be the last layer, whose sums the loss takes; end with a dense one")
            self.layers.append(layer)
            self.sources.append(source)
            source = i
            if layer.tensors:
                self._names[i] = {name: f"{prefix}.{place}.{name}" for name, _ in layer.tensors}
                place += 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what the network is, without the buffers of its steps; a copy computes on the CPU."""
        layers = self.trunk if self.given_heads else self.layers
        return _again, (layers, self.n_features, self.n_outputs, self.loss, self.dtype, self.backend.name, self.given_heads)

    def on(self, device: Device) -> Network:
        """Return this network, without the buffers of its steps, with its arithmetic on `device`."""
        layers = self.trunk if self.given_heads else self.layers
        return Network(layers, self.n_features, self.n_outputs, self.loss, self.dtype, self.backend, self.given_heads, device)

    def tensor_names(self, i: int) -> dict[str, str]:
        """Return layer i's tensors by their own names: how they are called in the network."""
        return self._names.get(i, {})

    def place(self, i: int) -> int:
        """Return the number of layer i among those that have parameters."""
        return list(self._names).index(i)

    def start(self, i: int) -> int:
        """Return where the parameters of layers i and up begin in the flat buffer; its end if there are none."""
        return min((self.params.slices[name].start for j, names in self._names.items() if j >= i for name in names.values()), default=self.n_params)

    def layer_views(self, i: int, flat: Array) -> dict[str, Array]:
        """Return layer i's tensors by their own names ("weight") as views of `flat`."""
        return {name: self.params.view(flat, full) for name, full in self._names.get(i, {}).items()}

    def offset(self, i: int) -> int:
        """Return where layer i's tensors begin in the flat buffer (0 if it has none)."""
        return min((self.params.slices[full].start for full in self._names.get(i, {}).values()), default=0)

    def init(self, seed: int) -> Array:
        """Return initial weights, equal for equal seeds on every rank."""
        flat: Array = self.backend.zeros(self.n_params, self.dtype)
        for place, i in enumerate(self._names):
            self.layers[i].initial(rng.stream(seed, "init", place), self.layer_views(i, flat))
        return flat

    def flops(self, m: int) -> int:
        """Count the floating-point operations of forward and backward for m rows."""
        return sum(head.loss.flops(m, head.n_outputs) for head in self.heads) + sum(layer.flops(m, wants_dx=i > self.first) for i, layer in enumerate(self.layers))

    def bind(self, m: int, w: Any, g: Any, slot: int = 0) -> Step | OnDevice | Resident:
        """Return the step of m rows on weights `w` and gradient `g`, flat and contiguous, n_params long, of the host or both of the device; made once and kept.

        Steps of one slot share their inputs and activations, which have room for the most rows bound so far: fill, run, then go to the next.
        The oldest of more than 64 steps is forgotten, and those of a slot are when it needs more room.
        """
        same = (m, id(w), id(g), slot)
        known = self._bound.get(same)
        if known is not None:
            return known[0]
        key = (m, _address(w), _address(g), slot)
        step = self._steps.get(key)
        if step is None:
            for name, flat in (("weights", w), ("gradient", g)):
                if flat.shape != (self.n_params,) or flat.dtype != self.dtype or not flat.flags.c_contiguous or not getattr(flat.flags, "aligned", True):
                    raise ValueError(f"{name}: {flat.dtype} of shape {flat.shape} is not a contiguous, aligned {self.dtype} array of {self.n_params}")
            if slot not in self._memory or m > self._memory[slot].m:
                self._forget(slot)
                self._memory[slot] = Memory(m, self.backend)
            if len(self._steps) >= N_STEPS_KEPT:
                del self._steps[next(iter(self._steps))]
            memory = self._memory[slot]
            if self.device.kernels is None:
                step = Step(self, Buffers(self, m, memory), w, g)
            else:
                step = (OnDevice if isinstance(w, np.ndarray) else Resident)(self, m, memory, w, g)
            self._steps[key] = step
        if len(self._bound) >= N_STEPS_KEPT:
            self._bound.clear()
        self._bound[same] = step, w, g
        return step

    def _forget(self, slot: int) -> None:
        """Let the memory of a slot go."""
        self._memory.pop(slot, None)
        self._bound.clear()
        for key in [key for key in self._steps if key[-1] == slot]:
            del self._steps[key]

    def parts(self) -> list[tuple[int, int]]:
        """Return the ranges of the gradient in the order in which `Step.run` reports them final: from the end to the start, without a gap."""
        own = [(i, self.offset(i)) for i in self._names]
        parts = [(at, self.layers[i].parts(self.dtype.itemsize, self.split and i == self.first)) for i, at in reversed(own)]
        return [(at + lo, at + hi) for at, ranges in parts for lo, hi in ranges]

    def score(self, w: Array, x: Any, y: Array, block: int = 512) -> tuple[float, int]:
        """Return the sum of the losses and the number of rows that are right, of all heads; dropout off, `block` rows at a time."""
        found = self.scored(w, x, y, block)
        losses = (head.weight * loss for of in found for head, (loss, _) in zip(self.heads, of, strict=True))
        return sum(losses), sum(n_correct for of in found for _, n_correct in of)

    def scored(self, w: Array, x: Any, y: Array, block: int = 512, outputs: Array | None = None) -> list[list[tuple[float, int]]]:
        """Return of each block of rows, of each head, the sum of the losses and the number of rows that are right; fill `outputs`, where given.

        `x`: rows (n, n_features), also sparse ones (`Csr`) where the first layer is dense. `y`: labels (n,), or for a loss that reads values float
        targets (n,) or (n, n_outputs), for which the loss says what is right; of heads the columns that they name.
        """
        found = []
        for lo, outs in self._blocks(w, x, block):
            hi = lo + len(outs[0])
            self._put(outputs, lo, outs)
            found.append([head.judge(self.backend, out, head.answers(y[lo:hi])) for head, out in zip(self.heads, outs, strict=True)])
        return found

    def predict(self, w: Array, x: Any, block: int = 512) -> Array:
        """Return the outputs (n, n_outputs), before any softmax."""
        outputs = np.empty((len(x), self.n_outputs), self.dtype)
        for lo, outs in self._blocks(w, x, block):
            self._put(outputs, lo, outs)
        return outputs

    def _put(self, outputs: Array | None, lo: int, outs: Sequence[Array]) -> None:
        """Write a block's outputs of all heads to `outputs`, from row `lo` on."""
        if outputs is not None:
            for head, out in zip(self.heads, outs, strict=True):
                head.cut(outputs)[lo : lo + len(out)] = out

    def _blocks(self, w: Array, x: Any, block: int) -> Iterator[tuple[int, list[Array]]]:
        """Yield (first row, outputs of each head) of each block of rows; the outputs may be overwritten, and are by the next."""
        size = min(block, len(x))
        backend = self.backend if self.device.kernels is None else self.device.kernels
        with backend.naming("the weights"):
            w = backend.here(w)
        is_sparse = isinstance(x, Csr)  # then the first layer, a dense one, multiplies what is stored
        if is_sparse:
            starts, columns, values = map(backend.here, x.arrays)
            x = Csr(starts, columns, values, x.n_features)
        with backend.naming("the rows that are scored"):
            buffers = {-1: backend.zeros((size, 0 if is_sparse else self.n_features), self.dtype)}
        chain = []
        for i, (layer, source) in enumerate(zip(self.layers, self.sources, strict=True)):
            if layer.training_only:
                buffers[i] = buffers[source]
                continue
            with backend.naming(f"the output of layer {i + 1}"):
                buffers[i] = backend.zeros((size, layer.n_out), self.dtype)
            kept = [backend.here(buffer) for buffer in layer.kept(size, self.dtype)]
            chain.append((layer, self.layer_views(i, w), kept, source, buffers[i]))
        for lo in range(0, len(x), block):
            n = min(block, len(x) - lo)
            rows: Any = x[lo : lo + block] if is_sparse else buffers[-1][:n]
            if not is_sparse:
                found = x[lo : lo + block]
                (backend.put if isinstance(found, np.ndarray) else backend.copy)(rows, found)  # products may be made where they are wanted
            for layer, parameters, kept, source, out in chain:
                a = Pass(buffers[source][:n] if source >= 0 else rows, out[:n], tuple(buffer[:n] for buffer in kept), parameters)
                for function, arguments in layer.forward(backend, a):
                    function(*arguments)
            yield lo, [backend.host(buffers[end][:n]) for end in self.ends]


def _address(a: Any) -> int:
    """Return where an array begins, of the host or of a device."""
    return int(a.__array_interface__["data"][0] if isinstance(a, np.ndarray) else a.data.ptr)


def _again(layers: Sequence[Layer], n_features: int, n_outputs: int, loss: Loss, dtype: DTypeLike, backend: str, heads: Sequence[Head]) -> Network:
    return Network(layers, n_features, n_outputs, loss, dtype, kernels(backend), heads)


@contextmanager
def naming(i: int, layer: Layer, where: str = "") -> Iterator[None]:
    """Open what a layer refuses by its number, from 1, and its type; before that `where`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}layer {i + 1} ({name_of(layer)}): {error}") from None
