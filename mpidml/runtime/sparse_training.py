"""The program of a worker whose rows are sparse: it reads and writes only the first weights of features that occur in its samples.

    samples of clock c  ->  features that occur, each once  ->  read: their rows of the first weight, and the rest of the parameters
                                                                write: gradients of those rows, and of the rest

Where rows are scored, at the first clock of an epoch and at the end, the weights of the features that occur in them are read as well. Where networks compute on
a device, the rows of a step and of the first weight go up, and gradients come down, as they are pushed: products, passes and links are the device's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.csr import Csr
from mpidml.core.role import Array, Lease
from mpidml.nn.sparse_first import Products
from mpidml.ps.task import Push, Read, Turn
from mpidml.runtime import scoring
from mpidml.runtime.training import Training
from mpidml.runtime.training_there import TrainingThere


class Numbered(NamedTuple):
    """Some samples, their columns numbered 0, 1, ... as they come; `features[number]` is the feature."""

    x: Csr
    features: Array


class Pulled(NamedTuple):
    """What a step reads of the first weight: `values` are rows for the samples that it learns from, then for those that it scores, by name, for `epoch`."""

    learnt: Numbered | None
    scored: dict[str, Numbered]
    epoch: int
    values: Array

    def weight(self, of: str = "") -> Array:
        """Return the rows for the scored samples `of` that name; for those that are learnt from without one."""
        at = 0 if self.learnt is None else len(self.learnt.features)
        if not of:
            return self.values[:at]
        for name, samples in self.scored.items():
            if name == of:
                break
            at += len(samples.features)
        return self.values[at : at + len(samples.features)]


class SparseTraining(Training):
    """A worker's part. Table 0 holds all parameters but the first weight, table 1 that, a row for each feature."""

    def __init__(self, strategy: Any, worker: int) -> None:
        super().__init__(strategy, worker, strategy.first.rest)
        self.number = np.full(strategy.first.n_rows, -1, np.int32)
        self.shares: dict[str, Numbered] = {}
        self.slots: list[Pulled | None] = [None, None]
        self.slot: Pulled
        self.x: Csr  # the samples of the step, their rows of the first weight, and the gradient of these, where `kernels` compute
        self.weight: Any
        self.g_rows: Any

    def reads(self, step: int) -> Sequence[Read]:
        """Read all but the first weight, and of that the rows of the features that occur in the step's samples, or in those that it scores."""
        epoch, before = step // self.sampler.clocks_per_epoch, self.slots[(step - 1) % 2]
        looks = epoch > self.scored_epoch and not self.job.patience and (before is None or before.epoch != epoch)
        learnt = self._numbered(self.data.x, self.sampler.indices(step, self.worker))
        return self._reads(step, learnt, [self.job.looks_at] if looks else [], epoch if looks else -1)

    def last_reads(self, step: int) -> Sequence[Read]:
        """Read what `finish` scores with."""
        return self._reads(step, None, [] if self.job.patience else list(dict.fromkeys(("test", self.job.looks_at))), -1)

    def _reads(self, step: int, learnt: Numbered | None, names: list[str], epoch: int) -> Sequence[Read]:
        scored = {of: self._share(of) for of in names}
        features = np.concatenate([samples.features for samples in (learnt, *scored.values()) if samples is not None] or [np.empty(0, np.int64)])
        values = np.empty((features.size, self.strategy.first.width), self.net.dtype)
        self.slots[step % 2] = Pulled(learnt, scored, epoch, values)
        return [*super().reads(step), *([Read(1, values, features)] if features.size else [])]

    def _share(self, of: str) -> Numbered:
        """Return this worker's share of the "test" or the "val" rows."""
        if of not in self.shares:
            x, _ = self.data.rows(of)
            self.shares[of] = self._numbered(x, np.arange(*scoring.share(len(x), self.worker, self.strategy.n_workers)))
        return self.shares[of]

    def _numbered(self, x: Csr, rows: Array) -> Numbered:
        n = int((x.starts[rows + 1] - x.starts[rows]).sum())
        found = Csr(np.empty(rows.size + 1, np.int64), np.empty(n, np.int32), np.empty(n, self.net.dtype), 0)
        features = np.empty(min(n, self.number.size), np.int64)
        k = self.net.backend.csr_take(*x.arrays, rows, self.number, features, *found.arrays)
        return Numbered(found, features[:k])

    def _parameters(self, turn: Turn) -> Array:
        slot = self.slots[turn.step % 2]
        assert slot is not None
        self.slot = slot
        if slot.learnt is not None:
            with self.kernels.naming("a step's rows of the first weight"):
                self.x, self.weight = self._here(slot.learnt.x), self.kernels.here(slot.weight())
                self.g_rows = self.kernels.zeros(self.weight.shape, self.net.dtype)
        return super()._parameters(turn)

    def _here(self, x: Csr) -> Csr:
        starts, columns, values = map(self.kernels.here, x.arrays)
        return Csr(starts, columns, values, x.n_features)

    def _fill(self, step: Any, own: Array, at: int) -> None:
        self.kernels.csr_matmul(*self.x[at : at + own.size].arrays, self.weight, self._rows_of(step))

    def _rows_of(self, step: Any) -> Any:
        return step.x

    def _use(self, step: Any, own: Array, at: int) -> None:
        self.kernels.csr_matmul_backward(*self.x[at : at + own.size].arrays, step.delta, self.g_rows)

    def _optimize(self, g: Any, w: Any, turn: Turn) -> None:
        """Run the links that need the whole gradient: it is zero where no feature occurs."""
        kernels, n = self.kernels, g.size
        together, weights = (kernels.zeros(n + self.g_rows.size, self.net.dtype) for _ in range(2))
        for flat, first, rows in ((together, g, self.g_rows), (weights, w, self.weight)):
            kernels.copy(flat[:n], first)
            kernels.copy(flat[n:], rows.reshape(-1))
        self.strategy.before.transform(kernels, together, self.state, weights, turn.step + 1)
        kernels.copy(g, together[:n])
        kernels.copy(self.g_rows, together[n:].reshape(self.g_rows.shape))

    def _pushes(self, lease: Lease) -> Sequence[Push]:
        assert self.slot.learnt is not None
        features = self.slot.learnt.features
        return [Push(0, lease), *([Push(1, Lease(self.kernels.host(self.g_rows).ravel()), features)] if features.size else [])]

    def _score(self, w: Array, of: str, x: Any, y: Array) -> scoring.Scores:
        """Score with the rows that were read, or with `w` where it holds all parameters."""
        if w.size == self.strategy.net.n_params:
            return scoring.score(self.strategy.net, w, x, y, self.data.targets)
        products = Products(self.kernels, self._here(self.slot.scored[of].x), self.kernels.here(self.slot.weight(of)))
        return scoring.score(self.net, w, products, y, self.data.targets)


class SparseThere(TrainingThere, SparseTraining):
    """A worker's part where networks compute on a device. Cost of a step beside the pass's own: what it reads up, and what it pushes down, once each."""

    def _rows_of(self, step: Any) -> Any:
        return step.rows_there()

    def _optimize(self, g: Any, w: Any, turn: Turn) -> None:
        SparseTraining._optimize(self, self.there.gradient, self.there.values, turn)

    def _pushes(self, lease: Lease) -> Sequence[Push]:
        there: Any = self.there.gradient
        there.get(out=lease.array)
        return super()._pushes(lease)
