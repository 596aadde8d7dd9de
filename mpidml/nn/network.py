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
from mpidml.core.errors import UserError
from mpidml.core.flat import Array, FlatParams
from mpidml.nn.layers.base import Layer, Pass
from mpidml.nn.losses.base import Loss
from mpidml.nn.step import Buffers, Step

N_STEPS_KEPT = 64


class Network:
    """A chain of layers with a loss; parameters are `layers.<i>.<tensor>` of the i-th layer that has any, in order.

    Arithmetic is that of `backend`, a namespace of kernels; dtype is float32 or float64. Set `split` before the first `bind` to compute the
    first layer's weight gradient, which is finished last, in two parts, so that little is left to travel at the end (it takes about 2% longer).
    """

    def __init__(self, layers: Sequence[Layer], n_features: int, n_outputs: int, loss: Loss, dtype: DTypeLike, backend: Any) -> None:
        """Connect the layers; ValueError, opened by the layer's number and type, where one does not fit."""
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise UserError(f"dtype: a network computes in float32 or float64, not {np.dtype(dtype)}; choose one of them")
        self.layers, self.n_features, self.loss, self.dtype, self.backend = tuple(layers), n_features, loss, np.dtype(dtype), backend
        self.n_outputs = n_outputs
        self.widths: list[int] = []
        for i, layer in enumerate(self.layers):
            is_last = i + 1 == len(self.layers)
            with naming(i, layer):
                self.widths.append(layer.connect(i, self.widths[-1] if i else n_features, n_outputs if is_last else None))
                if is_last and not layer.ends:
                    raise ValueError("cannot be the last layer, whose sums the loss takes; end with a dense one")
        own = [i for i, layer in enumerate(self.layers) if layer.tensors]
        self.first = own[0]  # nobody wants the gradient of its input
        self._names = {i: {name: f"layers.{place}.{name}" for name, _ in self.layers[i].tensors} for place, i in enumerate(own)}
        self.params = FlatParams([(self._names[i][name], shape) for i in own for name, shape in self.layers[i].tensors])
        self.n_params = self.params.size
        self.random = any(layer.random for layer in self.layers)
        self.split = False
        self._buffers: dict[int, Buffers] = {}  # of each slot, for the most rows so far
        self._steps: dict[tuple[int, int, int, int], Step] = {}
        self._bound: dict[tuple[int, int, int, int], tuple[Step, Array, Array]] = {}  # by id, which holds while the arrays are kept here

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what the network is, without the buffers of its steps."""
        return _again, (self.layers, self.n_features, self.n_outputs, self.loss, self.dtype, self.backend.name)

    def layer_views(self, i: int, flat: Array) -> dict[str, Array]:
        """Return layer i's tensors by their own names ("weight") as views of `flat`."""
        return {name: self.params.view(flat, full) for name, full in self._names.get(i, {}).items()}

    def offset(self, i: int) -> int:
        """Return where layer i's tensors begin in the flat buffer (0 if it has none)."""
        return min((self.params.slices[full].start for full in self._names.get(i, {}).values()), default=0)

    def init(self, seed: int) -> Array:
        """Return initial weights, equal for equal seeds on every rank."""
        flat = np.zeros(self.n_params, self.dtype)
        for place, i in enumerate(self._names):
            self.layers[i].initial(rng.stream(seed, "init", place), self.layer_views(i, flat))
        return flat

    def flops(self, m: int) -> int:
        """Count the floating-point operations of forward and backward for m rows."""
        return self.loss.flops(m, self.n_outputs) + sum(layer.flops(m, wants_dx=i > self.first) for i, layer in enumerate(self.layers))

    def bind(self, m: int, w: Array, g: Array, slot: int = 0) -> Step:
        """Return the step of m rows on weights `w` and gradient `g`, flat and contiguous, n_params long; made once and kept.

        Steps of one slot share their inputs and activations, which have room for the most rows bound so far: fill, run, then go to the next.
        The oldest of more than 64 steps is forgotten, and those of a slot are when it needs more room.
        """
        same = (m, id(w), id(g), slot)
        known = self._bound.get(same)
        if known is not None:
            return known[0]
        key = (m, w.__array_interface__["data"][0], g.__array_interface__["data"][0], slot)
        step = self._steps.get(key)
        if step is None:
            for name, flat in (("weights", w), ("gradient", g)):
                if flat.shape != (self.n_params,) or flat.dtype != self.dtype or not flat.flags.c_contiguous or not flat.flags.aligned:
                    raise ValueError(f"{name}: {flat.dtype} of shape {flat.shape} is not a contiguous, aligned {self.dtype} array of {self.n_params}")
            if slot not in self._buffers or m > len(self._buffers[slot].y):
                self._forget(slot)
                self._buffers[slot] = Buffers(self, m)
            if len(self._steps) >= N_STEPS_KEPT:
                del self._steps[next(iter(self._steps))]
            step = self._steps[key] = Step(self, self._buffers[slot].first(m), w, g)
        if len(self._bound) >= N_STEPS_KEPT:
            self._bound.clear()
        self._bound[same] = step, w, g
        return step

    def _forget(self, slot: int) -> None:
        """Let the memory of a slot go."""
        self._buffers.pop(slot, None)
        self._bound.clear()
        for key in [key for key in self._steps if key[-1] == slot]:
            del self._steps[key]

    def parts(self) -> list[tuple[int, int]]:
        """Return the ranges of the gradient in the order in which `Step.run` reports them final: from the end to the start, without a gap."""
        own = [(i, self.offset(i)) for i in self._names]
        parts = [(at, self.layers[i].parts(self.dtype.itemsize, self.split and i == self.first)) for i, at in reversed(own)]
        return [(at + lo, at + hi) for at, ranges in parts for lo, hi in ranges]

    def score(self, w: Array, x: Any, y: Array, block: int = 512) -> tuple[float, int]:
        """Return the sum of the losses and the number of rows that are right; dropout off, `block` rows at a time."""
        found = self.scored(w, x, y, block)
        return sum(loss for loss, _ in found), sum(n_correct for _, n_correct in found)

    def scored(self, w: Array, x: Any, y: Array, block: int = 512, outputs: Array | None = None) -> list[tuple[float, int]]:
        """Return the sum of the losses and the number of rows that are right of each block of rows; write the outputs to `outputs`, where given.

        `x`: rows (n, n_features), also sparse ones (`Csr`) where the first layer is dense. `y`: labels (n,), or for a loss that reads values float
        targets (n,) or (n, n_outputs), for which the loss says what is right.
        """
        found = []
        has_labels = not self.loss.from_values or (y.ndim == 1 and not np.issubdtype(y.dtype, np.floating))
        kernel, constants = getattr(self.backend, self.loss.kernel), self.loss.constants(self.n_outputs, self.dtype)
        for lo, out in self._blocks(w, x, block):
            part = y[lo : lo + len(out)]
            labels = np.ascontiguousarray(part, np.int64) if has_labels else None
            targets = np.empty_like(out) if self.loss.from_values else None
            if targets is not None and labels is not None:
                self.loss.fill(labels, targets)
            elif targets is not None:
                targets[...] = part.reshape(out.shape)
            if outputs is not None:
                outputs[lo : lo + len(out)] = out
            n_correct = self.loss.n_correct(self.backend, out, labels, targets)
            found.append((float(kernel(out, labels if targets is None else targets, *constants, 1.0)), n_correct))  # the kernel overwrites `out`
        return found

    def predict(self, w: Array, x: Any, block: int = 512) -> Array:
        """Return the outputs (n, n_outputs), before any softmax."""
        outputs = np.empty((len(x), self.n_outputs), self.dtype)
        for lo, out in self._blocks(w, x, block):
            outputs[lo : lo + len(out)] = out
        return outputs

    def _blocks(self, w: Array, x: Any, block: int) -> Iterator[tuple[int, Array]]:
        """Yield (first row, outputs) of each block of rows; the outputs may be overwritten, and are by the next."""
        size = min(block, len(x))
        chain = [(layer, self.layer_views(i, w), layer.kept(size, self.dtype)) for i, layer in enumerate(self.layers) if not layer.training_only]
        is_sparse = isinstance(x, Csr)  # then the first layer, a dense one, multiplies what is stored
        buffers = [np.empty((size, width), self.dtype) for width in (0 if is_sparse else self.n_features, *(layer.n_out for layer, _, _ in chain))]
        for lo in range(0, len(x), block):
            rows: list[Any] = [buffer[: len(x) - lo] for buffer in buffers]
            if is_sparse:
                rows[0] = x[lo : lo + block]
            else:
                rows[0][...] = x[lo : lo + block]
            for (layer, parameters, kept), given, out in zip(chain, rows[:-1], rows[1:], strict=True):
                a = Pass(given, out, tuple(buffer[: len(x) - lo] for buffer in kept), parameters)
                for function, arguments in layer.forward(self.backend, a):
                    function(*arguments)
            yield lo, rows[-1]


def _again(layers: Sequence[Layer], n_features: int, n_outputs: int, loss: Loss, dtype: DTypeLike, backend: str) -> Network:
    return Network(layers, n_features, n_outputs, loss, dtype, kernels(backend))


@contextmanager
def naming(i: int, layer: Layer) -> Iterator[None]:
    """Open what a layer refuses by its number, from 1, and its type."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {i + 1} ({type_name(layer)}): {error}") from None


def type_name(layer: Layer) -> str:
    """Return the name of a layer's plug-in file: LayerNorm is layer_norm."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(layer).__name__).lstrip("_")
