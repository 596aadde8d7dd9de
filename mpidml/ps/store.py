"""Hold the values of one shard in one or more versions, and change them by deltas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mpidml.core.role import Array, Message
from mpidml.optim.base import Chain, State
from mpidml.ps.on_device import OnDevice
from mpidml.sync.base import Tuning

PLAIN = Tuning()


class Store:
    """Values of rows [lo, lo + n) x width in `versions` (1-D arrays of n * width, one owner); version v lies in versions[v % len].

    One entry means a live copy that changes in place. `chain` None adds deltas. `kernels`: of a device on which the chain's updates are made; the arrays are
    the host's all the same, and what is to be changed in them is changed by this class alone.

    An optimizer counts steps by the row: an update's step is the number of updates that the most often updated of its rows has seen. So the pieces of
    a cut update are one step, and a row that is touched for the first time makes a first step (PyTorch's SparseAdam counts calls instead,
    and so takes bias corrections for done that such a row has never had).
    """

    def __init__(self, versions: Sequence[Array], lo: int, width: int, backend: Any, chain: Chain | None = None, kernels: Any = None) -> None:
        self.versions, self.lo, self.width, self.backend, self.chain = list(versions), lo, width, backend, chain
        self.latest = 0
        self.n_whole = self.most_besides = 0
        self.besides: Array | None = None  # how many updates each row has seen besides the whole ones
        self._optimizer: State = chain.init(self.versions[0].size, self.versions[0].dtype) if chain else {}
        there = kernels is not None and (chain is not None or width == 1)  # rows of tables that are only added to stay where messages are
        self.device = OnDevice(kernels, chain, self.versions[0], self._optimizer, in_rows=width > 1) if there else None

    @property
    def optimizer(self) -> State:
        """Return the optimizer's arrays as they are now; where they lie on a device they come from there."""
        if self.device is not None:
            self.device.down(self._optimizer)
        return self._optimizer

    def add_state(self, arrays: State) -> None:
        """Let arrays that somebody else steps be saved and compared with the optimizer's."""
        self._optimizer |= arrays

    def begin(self, clock: int) -> None:
        """Call the newest values version `clock`; older ones keep their distance where they were versions of clocks before."""
        if clock != self.latest:
            newest, place = (self.versions[v % len(self.versions)] for v in (self.latest, clock))
            if place is not newest:
                np.copyto(place, newest)
            self.latest = clock

    def state(self, back: int) -> dict[str, Array]:
        """Return the newest values as "", up to `back` older versions as "-1", ..., the optimizer's arrays, and how often rows were updated apart."""
        n = min(back, self.latest, len(self.versions) - 1)
        values = {f"-{k}" if k else "": self.at(self.latest - k).ravel() for k in range(n + 1)}
        besides = {".besides": self.besides} if self.besides is not None else {}
        return values | besides | {f".optimizer.{name}": array for name, array in self.optimizer.items()}

    def restore(self, clock: int, fill: Callable[[str, Array], bool]) -> None:
        """Let `fill(name, out)` fill the arrays of `state`, with `clock` as the newest version; one that was not saved is taken from the newest."""
        n = len(self.versions)
        self.latest = clock if n > 1 else self.latest
        for k in range(min(n, clock + 1)):
            if not fill(f"-{k}" if k else "", self.versions[(self.latest - k) % n]) and k:
                np.copyto(self.versions[(self.latest - k) % n], self.versions[self.latest % n])
        for name, array in self.optimizer.items():
            fill(f".optimizer.{name}", array)
        self._changed()

    def count(self, whole: Array, fill: Callable[[str, Array], bool]) -> None:
        """Learn how many updates each row (its shard, then) has seen whole, and from `fill` how many besides."""
        self.n_whole, besides = int(whole.min()), np.zeros(whole.size, np.int32)
        fill(".besides", besides)
        besides += (whole - self.n_whole).astype(np.int32)
        self.most_besides = int(besides.max())
        self.besides = besides if self.most_besides else None

    def at(self, version: int) -> Array:
        """Return the values of `version` (one of the last len(versions)) as rows x width."""
        return self.versions[version % len(self.versions)].reshape(-1, self.width)

    def put(self, values: Array) -> None:
        """Take `values` for the newest."""
        np.copyto(self.at(self.latest), values)
        self._changed()

    def _changed(self) -> None:
        """Let the device know what was changed on the host."""
        if self.device is not None:
            self.device.up(self.at(self.latest).ravel(), self.optimizer)

    def step(self, total: Array, tuning: Tuning = PLAIN) -> None:
        """Make one update of all values by `total`, which may be overwritten. It is the next version where versions are kept."""
        old, new = self._next_version()
        self.n_whole += 1
        self._update(old, new, total, slice(0, new.size), self.n_whole + self.most_besides, tuning)

    def _next_version(self) -> tuple[Array, Array]:
        old = self.versions[self.latest % len(self.versions)]
        self.latest += 1
        return old, self.versions[self.latest % len(self.versions)]

    def apply(self, deltas: Sequence[Message], tuning: Tuning = PLAIN) -> None:
        """Make one update of the sum of `deltas`, in their order, and end their leases. It is the next version where versions are kept."""
        old, new = self._next_version()
        total: Array | None = None
        more: list[Array] = []  # whose sum the device makes
        partial: list[Message] = []
        for delta in deltas:
            if delta.rows is not None or (delta.lo >= 0 and (delta.hi - delta.lo) * self.width < old.size):
                partial.append(delta)
            elif total is None:
                total = self._data(delta)
            elif self.device is not None:
                more.append(self._data(delta))
            else:
                self.backend.add(total, self._data(delta))
        if total is not None:
            if partial:
                for data in more:
                    self.backend.add(total, data)
                more = []
                self._add_rows(total.reshape(-1, self.width), partial)
            self.n_whole += 1
            self._update(old, new, total, slice(0, new.size), self.n_whole + self.most_besides, tuning, more)
        else:
            if new is not old:
                np.copyto(new, old)
            if partial:
                self._update_rows(new.reshape(-1, self.width), partial, tuning)
        for delta in deltas:
            if delta.data is not None:
                delta.data.release()

    def _update(self, old: Array, new: Array, total: Array, where: slice, step: int, tuning: Tuning, more: Sequence[Array] = ()) -> None:
        """Update elements `where`, which are `old` and become `new`, by the sum of `total`, which may be overwritten, and `more`."""
        if self.device is not None:
            self.device.update(new, (total, *more), where, step, tuning)
            return
        for data in more:
            self.backend.add(total, data)
        if self.chain is not None:
            own = {name: array[where] for name, array in self._optimizer.items()}
            self.chain.apply(self.backend, old, new, total, own, step, tuning.rate, tuning.memory)
        elif new is old:
            self.backend.add(old, total)
        else:
            self.backend.descend(old, new, total, -1.0)

    def _add_rows(self, values: Array, deltas: Sequence[Message]) -> None:
        for delta in deltas:
            data = self._data(delta).reshape(-1, self.width)
            if delta.rows is not None:
                self.backend.add_rows(values, delta.rows - self.lo, data)
            else:
                values[delta.lo - self.lo : delta.hi - self.lo] += data

    def _update_rows(self, values: Array, deltas: Sequence[Message], tuning: Tuning) -> None:
        # An optimizer sees each touched row once, with the summed gradient; rows not touched keep their state (lazy updates).
        blocks: dict[tuple[int, int], list[Array]] = {}
        for delta in deltas:
            blocks.setdefault((delta.lo, delta.hi), []).append(self._data(delta))
        apart = all(delta.rows is None for delta in deltas) and all(a[1] <= b[0] for a, b in pairwise(sorted(blocks)))
        if self.chain is None and not (apart and self.device is not None):
            self._add_rows(values, deltas)
            self._changed()
            return
        if apart:
            for (lo, hi), (total, *others) in blocks.items():
                block = slice(lo - self.lo, hi - self.lo)
                part, elements = values[block].reshape(-1), slice(block.start * self.width, block.stop * self.width)
                self._update(part, part, total, elements, self._next_step(block) if self.chain is not None else 0, tuning, others)
            return
        rows = np.concatenate([np.arange(d.lo, d.hi) if d.rows is None else d.rows for d in deltas])
        where, inverse = np.unique(rows - self.lo, return_inverse=True)
        given, step = np.concatenate([self._data(d).reshape(-1, self.width) for d in deltas]), self._next_step(where)
        if self.device is not None:
            self.device.update_rows(values, where, inverse.astype(np.int64), given, step, tuning)
            return
        data = np.zeros((where.size, self.width), values.dtype)
        self.backend.add_rows(data, inverse.astype(np.int64), given)
        touched = {name: array.reshape(-1, self.width)[where].ravel() for name, array in self._optimizer.items()}
        part = values[where].ravel()
        assert self.chain is not None
        self.chain.apply(self.backend, part, part, data.ravel(), touched, step, tuning.rate, tuning.memory)
        values[where] = part.reshape(-1, self.width)
        for name, array in touched.items():
            self._optimizer[name].reshape(-1, self.width)[where] = array.reshape(-1, self.width)

    def _next_step(self, where: slice | Array) -> int:
        """Count one more update of some rows; return its step."""
        if self.besides is None:
            self.besides = np.zeros(self.versions[0].size // self.width, np.int32)
        self.besides[where] += 1
        most = int(self.besides[where].max(initial=1))
        self.most_besides = max(self.most_besides, most)
        return self.n_whole + most

    def read(self, version: int, message: Message, allocate: Callable[[int], Any]) -> Any:
        """Copy what the pull `message` asks for out of `version` into a buffer from `allocate(nbytes)`; return its lease."""
        values = self.at(version)
        if message.rows is not None:
            n = message.rows.size
        else:
            lo, hi = (message.lo - self.lo, message.hi - self.lo) if message.lo >= 0 else (0, values.shape[0])
            n, values = hi - lo, values[lo:hi]
        buffer = allocate(n * self.width * values.itemsize)
        out = buffer.array(values.dtype, n * self.width)
        if message.rows is not None:
            self.backend.take(values, message.rows - self.lo, out.reshape(n, self.width))
        else:
            np.copyto(out, values.ravel())
        return buffer.lease(out)

    def _data(self, message: Message) -> Array:
        assert message.data is not None
        array, dtype = message.data.array, self.versions[0].dtype
        return array if array.dtype == dtype else array.view(dtype)
