"""End a chain of parts: the cross entropy of outputs that are cut by columns, and any loss of whole ones, with one face.

    z, own columns  ->  largest over the line  ->  sums of exp, and z at the label, over the line  ->  loss, the same on all; gradient, own columns
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from mpidml_kernels import LAWS
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Thunk
from mpidml.nn.losses.base import Loss
from mpidml.nn.losses.cross_entropy import CrossEntropy
from mpidml.nn.split.line import Line, gathered, own

Lose = Callable[[float], float]


class Ending:
    """A loss of the outputs of a chain, whole ones: each rank computes it, and the same bits."""

    def __init__(self, loss: Loss, n_outputs: int) -> None:
        self.loss, self.n_outputs = loss, n_outputs

    def bind(self, backend: Any, z: Array, answers: Array) -> Lose:
        """Return the call that takes the gradient's factor and returns the sum of the losses, leaving the gradient in z (m, own columns).

        answers: what the loss reads, labels int64 (m,) or targets (m, n_outputs).
        """
        constants = (backend.here(each) if isinstance(each, np.ndarray) else each for each in self.loss.constants(self.n_outputs, z.dtype))
        return partial(getattr(backend, self.loss.kernel), z, answers, *constants)

    def whole_outputs(self, backend: Any, z: Array) -> tuple[list[Thunk], Array]:
        """Return the calls that make whole outputs of z, and where they lie (m, n_outputs): to count right rows, or to predict, before the loss."""
        return [], z

    def flops(self, m: int) -> int:
        """Count this rank's operations."""
        return self.loss.flops(m, self.n_outputs)

    def sums(self, m: int, dtype: DTypeLike) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return (elements, bytes of one) of what is summed in a pass over m rows, and of what the largest value is taken of."""
        return [], []


class SplitCrossEntropy(Ending):
    """The cross entropy of outputs of which each rank holds some columns, with class weights and label smoothing as the whole one has them.

    Of a row two numbers are summed, three with smoothing, in float64, instead of all outputs (Shoeybi et al., Megatron-LM, 2019, section 3).
    """

    loss: CrossEntropy

    def __init__(self, loss: CrossEntropy, n_outputs: int, line: Line) -> None:
        super().__init__(loss, n_outputs)
        self.line, self.columns = line, own(line, n_outputs)
        self.n_sums = 3 if loss.label_smoothing else 2

    def bind(self, backend: Any, z: Array, answers: Array) -> Lose:
        """Return the call; it allocates nothing."""
        first, factors = self.columns.start, backend.here(self.loss.factors(self.n_outputs, z.dtype))
        largest, sums = backend.zeros(len(z), z.dtype), backend.zeros((self.n_sums, len(z)), np.float64)
        most, total = self.line.most(largest), self.line.sum(sums.reshape(-1))
        smoothing = self.loss.label_smoothing
        find, add_up, finish = backend.largest_of_rows, backend.xent_part_sums, backend.xent_part

        def lose(scale: float) -> float:
            find(z, largest)
            most()
            add_up(z, answers, first, largest, factors, sums)
            total()
            return float(finish(z, answers, first, sums, factors, smoothing, scale))

        return lose

    def whole_outputs(self, backend: Any, z: Array) -> tuple[list[Thunk], Array]:
        """Return a sum that lays all columns side by side in a buffer of its own; `sums` does not count it."""
        out = backend.zeros((len(z), self.n_outputs), z.dtype)
        return gathered(backend, self.line, z, out), out

    def flops(self, m: int) -> int:
        """Count the three kernels."""
        n = self.columns.stop - self.columns.start
        return sum(LAWS[name].flops(m, n) for name in ("largest_of_rows", "xent_part_sums", "xent_part"))

    def sums(self, m: int, dtype: DTypeLike) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return one sum and one largest value."""
        return [(self.n_sums * m, 8)], [(m, np.dtype(dtype).itemsize)]
