"""Hold layers over one flat parameter buffer: a network has a layout, never values, so any array of the right length can be its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mpidml_kernels import LAWS
from numpy.typing import DTypeLike

from mpidml.core import rng
from mpidml.core.errors import UserError, nearest
from mpidml.core.flat import Array, FlatParams
from mpidml.nn.layers import Dense, Dropout
from mpidml.nn.step import Buffers, Step, one_hot

LOSSES = ("cross_entropy", "squared_error")
N_STEPS_KEPT = 64


class Network:
    """A chain of layers with a loss; parameters are `layers.<i>.weight` and `layers.<i>.bias` of the i-th dense layer, in order.

    Arithmetic is that of `backend`, a namespace of kernels; dtype is float32 or float64. Set `split` before the first `bind` to compute the
    first layer's weight gradient, which is finished last, in two parts, so that little is left to travel at the end (it takes about 2% longer).
    """

    def __init__(self, layers: Sequence[Dense | Dropout], n_features: int, loss: str, dtype: DTypeLike, backend: Any) -> None:
        if loss not in LOSSES:
            raise UserError(f"loss: there is no '{loss}'; {nearest(loss, LOSSES)}")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise UserError(f"dtype: a network computes in float32 or float64, not {np.dtype(dtype)}; choose one of them")
        self.layers, self.n_features, self.loss, self.dtype, self.backend = tuple(layers), n_features, loss, np.dtype(dtype), backend
        self.widths: list[int] = []
        for layer in self.layers:
            self.widths.append(layer.width(self.widths[-1] if self.widths else n_features))
        self.n_outputs = self.widths[-1]
        dense = [i for i, layer in enumerate(self.layers) if layer.tensors]
        self._names = {i: {name: f"layers.{place}.{name}" for name, _ in self.layers[i].tensors} for place, i in enumerate(dense)}
        self.params = FlatParams([(self._names[i][name], shape) for i in dense for name, shape in self.layers[i].tensors])
        self.n_params = self.params.size
        self.split = False
        self._buffers: dict[tuple[int, int], Buffers] = {}
        self._steps: dict[tuple[int, int, int, int], Step] = {}
        self._bound: dict[tuple[int, int, int, int], tuple[Step, Array, Array]] = {}  # by id, which holds while the arrays are kept here

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
            layer = self.layers[i]
            if isinstance(layer, Dense):
                layer.initial(rng.stream(seed, "init", place), self.layer_views(i, flat))
        return flat

    def flops(self, m: int) -> int:
        """Count the floating-point operations of forward and backward for m rows."""
        total = LAWS["softmax_xent" if self.loss == "cross_entropy" else "squared_error"].flops(m, self.n_outputs)
        is_first = True
        for layer, width in zip(self.layers, self.widths, strict=True):
            if isinstance(layer, Dense):
                total += layer.flops(m, wants_dx=not is_first)
                is_first = False
            else:
                total += LAWS["dropout"].flops(m, width) + (0 if is_first else LAWS["dropout_in_place"].flops(m, width))
        return total

    def bind(self, m: int, w: Array, g: Array, slot: int = 0) -> Step:
        """Return the step of m rows on weights `w` and gradient `g`, flat and contiguous, n_params long; made once and kept.

        Steps of one (m, slot) share their inputs and activations. The oldest of more than 64 steps is forgotten.
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
            if (m, slot) not in self._buffers:
                self._buffers[m, slot] = Buffers(self, m)
            if len(self._steps) >= N_STEPS_KEPT:
                del self._steps[next(iter(self._steps))]
            step = self._steps[key] = Step(self, self._buffers[m, slot], w, g)
        if len(self._bound) >= N_STEPS_KEPT:
            self._bound.clear()
        self._bound[same] = step, w, g
        return step

    def parts(self) -> list[tuple[int, int]]:
        """Return the ranges of the gradient in the order in which `Step.run` reports them final: from the end to the start, without a gap."""
        dense = [(layer, self.offset(i)) for i, layer in enumerate(self.layers) if isinstance(layer, Dense)]
        return [(at + lo, at + hi) for layer, at in reversed(dense) for lo, hi in layer.parts(self.dtype.itemsize, self.split and layer is dense[0][0])]

    def score(self, w: Array, x: Array, y: Array, block: int = 512) -> tuple[float, int]:
        """Return the sum of the losses and the number of rows whose largest output is at the label; dropout off, `block` rows at a time.

        `y`: labels (n,), or with the squared error float targets (n, n_outputs), for which no row counts as correct.
        """
        loss, n_correct = 0.0, 0
        has_labels = self.loss == "cross_entropy" or not np.issubdtype(y.dtype, np.floating)
        for lo, out in self._blocks(w, x, block):
            labels = np.ascontiguousarray(y[lo : lo + len(out)], np.int64) if has_labels else np.full(len(out), -1)
            if self.loss == "cross_entropy":
                block_loss, block_correct = self.backend.score_xent(out, labels)
            else:
                targets = np.empty_like(out)
                if has_labels:
                    one_hot(labels, targets)
                else:
                    targets[...] = y[lo : lo + len(out)].reshape(out.shape)
                block_loss, block_correct = self.backend.score_squared(out, targets, labels)
            loss += block_loss
            n_correct += block_correct
        return loss, n_correct

    def predict(self, w: Array, x: Array, block: int = 512) -> Array:
        """Return the outputs (n, n_outputs), before any softmax."""
        outputs = np.empty((len(x), self.n_outputs), self.dtype)
        for lo, out in self._blocks(w, x, block):
            outputs[lo : lo + len(out)] = out
        return outputs

    def _blocks(self, w: Array, x: Array, block: int) -> Iterator[tuple[int, Array]]:
        """Yield (first row, outputs) of each block of rows; the outputs are overwritten by the next."""
        size = min(block, len(x))
        dense = [(layer, self.layer_views(i, w)) for i, layer in enumerate(self.layers) if isinstance(layer, Dense)]
        buffers = [np.empty((size, width), self.dtype) for width in (self.n_features, *(layer.n_out for layer, _ in dense))]
        for lo in range(0, len(x), block):
            rows = [buffer[: len(x) - lo] for buffer in buffers]
            rows[0][...] = x[lo : lo + block]
            for (layer, parameters), given, out in zip(dense, rows[:-1], rows[1:], strict=True):
                for function, arguments in layer.forward(self.backend, given, out, parameters):
                    function(*arguments)
            yield lo, rows[-1]
