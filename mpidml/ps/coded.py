"""Send deltas and answers in few bytes: a worker encodes what it pushes, a shard what has changed since the copy that the worker holds.

    PUSH   delta + residual  --code-->  decoded, summed up, applied           the residual stays with the worker, by parameter
    ROWS   values            ------->   the worker's copy                     the first answer of a run, or of one that goes on: in full
    ROWS   values - copy     --code-->  copy += decoded, there and here       the next difference holds whatever this one has left
    ROWS   values            ------->   used as they are                      the last answer, of what all have written: in full

So nothing is lost either way, and what a worker computes with is, bit by bit, what the shard knows it to have. A tensor (or the part of one in a
shard) that goes as it is (see `Compressor`) goes as values, not as a difference, which would round. Votes and codes that are right only in the
mean are no approximation of a difference, whose errors they would add up: of these only pushes are coded, and answers go in full.
Source: Tang et al. 2019 (DoubleSqueeze); Richtarik et al. 2021 (EF21: code the difference to what the receiver has).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.compression.base import Codec, Compressor
from mpidml.core.clocks import ENDED
from mpidml.core.role import Array, Lease, Message, Send, new
from mpidml.optim.base import Chain
from mpidml.ps.client import Client
from mpidml.ps.crossing import Crossing
from mpidml.ps.shard import Shard
from mpidml.ps.store import PLAIN, Store
from mpidml.ps.table import TableSpec
from mpidml.sync.base import SyncPolicy, Tuning

UNKNOWN = -1
"""The version of a copy that a run before this one has sent, where versions are not counted by clock: it is never taken for the present one."""
NOTHING_NEW = np.empty(0, np.uint8)


def codes_answers(codec: Codec) -> bool:
    """Tell whether differences can be sent in the codec: whether what it leaves of one is smaller than that, so that errors do not add up."""
    return not (codec.votes or codec.unbiased)


def shares(policy: SyncPolicy, by_clock: bool) -> bool:
    """Tell whether all workers read the same versions one after the other, each at most a bound of clocks behind: versions are of clocks, and no gate lets one skip any."""
    return by_clock and policy.bound is not None and not policy.gate_at


def follow(coder: Compressor, code: Any, lo: int, hi: int, copy: Any) -> None:
    """Bring `copy`, (hi - lo,), to what `code` says; both lie where the coder computes. Both sides call this, and compute alike, so both hold the same bits."""
    for piece in coder.pieces(lo, hi):
        of = copy[piece.of_range]
        if piece.as_it_is:
            coder.backend.copy(of, code[piece.of_code].view(of.dtype))
        else:
            coder.codec.decode_add(coder.backend, code[piece.of_code], of.reshape(piece.shape))


class Copy:
    """What some workers hold of a shard: `values`, where its coder computes, as of `version`.

    `following`: by the version to which one of them went on, the code and the copy after it. `n_held` counts the workers that hold it and the copies that lead to it.
    """

    __slots__ = ("following", "n_held", "values", "version")

    def __init__(self, values: Any, version: int) -> None:
        self.values, self.version, self.n_held = values, version, 0
        self.following: dict[int, tuple[Array, Copy]] = {}


class CodedStore(Store):
    """A store that is changed by codes of deltas, and knows which copy each of `n_workers` holds; `coder` is for its range alone.

    `shares`: all workers read the same versions one after the other, none more than so many clocks behind another; then they share copies, and a code
    is made once. Memory, each as large as the shard: the sum of a clock, the room of the coder's residual, the copies, and one to spare; copies that are
    shared are two under bsp and s + 2 where reads are s clocks behind, others one for each worker. Cost of an answer whose code is not made yet: a
    difference, an encoding and a decoding of the shard.
    """

    def __init__(
        self, versions: Sequence[Array], lo: int, width: int, backend: Any, chain: Chain | None, coder: Compressor, n_workers: int, shares: bool,
        kernels: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(versions, lo, width, backend, chain, kernels)
        self.coder, self.hi, self.shares, self.crossing = coder, lo + versions[0].size, shares, Crossing(coder)
        self.total = self._total()
        self.codes_answers = codes_answers(coder.codec)
        self.copies: list[Copy | None] = [None] * n_workers
        self.n_codes: dict[int, int] = {}  # that each worker has been sent since it was sent values; a pause changes neither these nor the copies
        self.spare: list[Any] = []

    def _total(self) -> Any:
        """Return the place of sums and differences, (hi - lo,), where the coder computes."""
        return np.zeros_like(self.versions[0])

    def values(self, version: int) -> Any:
        """Return the values of `version`, (hi - lo,), where the coder computes."""
        return self.at(version).ravel()

    def apply(self, deltas: Sequence[Message], tuning: Tuning = PLAIN) -> None:
        """Make one update of the sum of what the codes hold, in their order, and end their leases."""
        if not deltas:
            super().apply(deltas, tuning)
            return
        for number, delta in enumerate(deltas):
            assert delta.data is not None
            decode = self.coder.decode_add if number else self.coder.decode
            decode(self.crossing.take(delta.data.array), self.lo, self.hi, self.total)
            delta.data.release()
        self.coder.combine(self.total, self.lo, self.hi)
        self.step(self.total, tuning)

    def go_on(self, worker: int, version: int) -> Array:
        """Take a worker's copy to the values of `version`; return the code that takes its own there, of no bytes where it holds them already."""
        held = self.copies[worker]
        if held is None:  # what another one holds of that version will do
            held = next((of for of in self.copies if of is not None and of.version == version), None)
            self.hold(worker, held or Copy(self._copy(self.values(version)), version))
            return NOTHING_NEW
        if held.version == version:
            return NOTHING_NEW
        if version in held.following:
            code, copy = held.following[version]
        else:
            code, copy = self._encoded(held, version)
            if self.shares:
                held.following[version] = code, copy
                copy.n_held += 1
        self.hold(worker, copy)
        return code

    def hold(self, worker: int, copy: Copy) -> None:
        """Note that a worker holds `copy` from now on."""
        copy.n_held += 1
        before, self.copies[worker] = self.copies[worker], copy
        if before is not None:
            self._leave(before)

    def _leave(self, copy: Copy) -> None:
        copy.n_held -= 1
        if not copy.n_held:
            self.spare.append(copy.values)
            for _, after in copy.following.values():
                self._leave(after)

    def _copy(self, values: Any) -> Any:
        """Return a copy of values, where they lie."""
        backend = self.coder.backend
        with backend.naming("what workers hold of a shard"):
            copy = self.spare.pop() if self.spare else backend.zeros(values.size, values.dtype)
        backend.copy(copy, values)
        return copy

    def _encoded(self, held: Copy, version: int) -> tuple[Array, Copy]:
        coder, lo, hi, values = self.coder, self.lo, self.hi, self.values(version)
        coder.backend.descend(values, self.total, held.values, 1.0)
        for piece in coder.pieces(lo, hi):
            if piece.as_it_is:
                coder.backend.copy(self.total[piece.of_range], values[piece.of_range])
            elif "residual" in piece.state:
                piece.state["residual"].fill(0)  # the difference holds it
        code = np.zeros(coder.nbytes(lo, hi), np.uint8)
        there = self.crossing.encode(self.total, lo, hi, code, version)
        copy = self._copy(held.values)
        follow(coder, there, lo, hi, copy)
        return code, Copy(copy, version)


class CodedShard(Shard):
    """A shard whose answers are codes; all its pulls are of all rows, one at a time of each worker."""

    store: CodedStore

    def _values(self, source: int, message: Message, version: int) -> tuple[Lease | None, int]:
        """Return the payload of an answer, and how many codes its reader has been sent since it was sent values (-1: these are not to be kept)."""
        store = self.store
        if not store.codes_answers or message.version >= ENDED:
            return super()._values(source, message, version)
        worker = self.order[source]
        payload = store.go_on(worker, version if self.by_clock else store.latest)
        number = store.n_codes[worker] = store.n_codes.get(worker, -1) + 1
        if not number:
            payload = store.coder.backend.host(store.copies[worker].values).view(np.uint8)  # type: ignore[union-attr]
        return leased(self.allocate, payload), number  # type: ignore[arg-type]


class CodedClient(Client):
    """A client that encodes what it pushes by `coder`, which is its worker's for the whole run, and holds the copy that each shard keeps up to date.

    What is pushed, the copies, and what reads are to fill lie where the coder computes. Memory: the copies together are as large as the tables.
    """

    def __init__(self, tables: Sequence[TableSpec], policy: SyncPolicy, by_clock: bool, coder: Compressor, allocate: Callable[[int], Any]) -> None:
        super().__init__(tables, policy, by_clock)
        self.coder, self.allocate, self.crossing = coder, allocate, Crossing(coder)
        self.range_of = {role: self.tables[t].shards[i][:2] for role, (t, i) in self.routing.shard_of.items()}
        self.held: dict[int, Any] = {}
        self.n_codes: dict[int, int] = {}

    def go_on_from(self, before: CodedClient) -> None:
        """Take over the copies of the client that this worker had until the run paused; its shards know of these."""
        self.held, self.n_codes = before.held, before.n_codes

    def push(
        self, table: int, delta: Lease, rows: Array | None = None, block: tuple[int, int] | None = None, ends: bool = False, version: int = 0
    ) -> list[Send]:
        """Send the code of `delta` to each shard; the lease of the delta ends here."""
        effects: list[Send] = []
        for role, message in super().push(table, delta, rows=rows, block=block, ends=ends, version=version):
            values, (lo, hi) = message.data, self.range_of[role]
            assert values is not None and message.lo < 0 and message.rows is None
            buffer = self.allocate(n := self.coder.nbytes(lo, hi))
            self.crossing.encode(values.array, lo, hi, code := buffer.array(np.uint8, n), self.batch)
            values.lend().release()
            effects.append(new(Send, (role, message._replace(data=buffer.lease(code)))))
        return effects

    def answer(self, now: float, source: int, message: Message) -> None:
        """Bring the copy to what the answer says, and fill the ticket with it; an answer that is not to be kept is taken as any other."""
        payload = message.data
        if payload is None or message.batch < 0:
            super().answer(now, source, message)
            return
        if message.batch and message.batch != self.n_codes[source] + 1:
            raise RuntimeError(
                f"code {message.batch} of shard {source} came after code {self.n_codes[source]}; each changes what the one before has left"
            )
        self.n_codes[source] = message.batch
        if not message.batch:
            values = payload.array.view(self.coder.dtype)
            with self.coder.backend.naming("what a worker holds of a shard"):
                self.held[source] = self.coder.backend.zeros(values.size, values.dtype)
            self.crossing.put(self.held[source], values)
        elif payload.array.size:
            follow(self.coder, self.crossing.take(payload.array), *self.range_of[source], self.held[source])
        payload.release()
        super().answer(now, source, message._replace(data=Lease(self.held[source])))

    def landing(self, source: int, message: Message) -> Array | None:
        """Name the place of values in full, if that is the host's; codes have none."""
        return super().landing(source, message) if message.batch <= 0 and self.coder.backend.gpu is None else None

    def _land(self, out: Any, values: Any) -> None:
        if self.coder.backend.gpu is None:
            super()._land(out, values)
        elif isinstance(values, np.ndarray):
            self.crossing.put(out, values)
        else:
            self.coder.backend.copy(out, values)


def leased(allocate: Callable[[int], Any], payload: Array) -> Lease:
    """Copy bytes into a buffer from `allocate(nbytes)`; return its lease."""
    buffer = allocate(payload.size)
    out = buffer.array(np.uint8, payload.size)
    np.copyto(out, payload)
    lease: Lease = buffer.lease(out)
    return lease
