"""What is sent as codes is lost neither on the way to the servers nor back, and both ends of a link know the same; on virtual clocks."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from functools import partial

import numpy as np
import pytest
from mpidml_kernels import backend

from mpidml.compression.base import Compressor, make_codec
from mpidml.core import plugins
from mpidml.core.buffers import Buffers
from mpidml.core.flat import FlatParams
from mpidml.core.partition import shards
from mpidml.core.position import Position
from mpidml.core.role import PUSH, ROWS, Lease
from mpidml.optim.base import make_chain
from mpidml.ps import coded
from mpidml.ps.client import Client
from mpidml.ps.coded import CodedClient, CodedShard, CodedStore, Copy, shares
from mpidml.ps.coordinator import Coordinator
from mpidml.ps.shard import Shard
from mpidml.ps.store import Store
from mpidml.ps.table import TableSpec, n_versions
from mpidml.ps.task import Push, Read
from mpidml.ps.worker import Worker
from mpidml.sim import virtual
from mpidml.sync.adaptive import Adaptive
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from mpidml.sync.dssp import Dssp
from mpidml.sync.quorum import Quorum
from mpidml.sync.ssp import Ssp
from mpidml.sync.warmup import Warmup

NUMPY = backend("numpy")
LARGE = FlatParams([("a", (40, 30)), ("b", (7,)), ("c", (30, 50))])
SMALL = FlatParams([("a", (12, 10)), ("b", (7,)), ("c", (100,))])  # each below 1 KB: they go as they are
CODECS = plugins.names("mpidml.compression")
KEEPING = [name for name in CODECS if make_codec(name).has_residual]
POLICIES = [Bsp(), Ssp(3), Asp(), Dssp(1, 4), Warmup(10, 2), Quorum(), Adaptive(1, 4)]
# Every codec where workers share copies and where each has its own, and every policy with one codec; votes wherever they are counted.
PAIRS = [
    (codec, policy)
    for codec in CODECS
    for policy in POLICIES
    if (policy.commit == "clock" if make_codec(codec).votes else codec == "two_bit" or type(policy) in (Bsp, Asp))
]
by_name = partial(pytest.mark.parametrize, ids=lambda value: str(value) if isinstance(value, str | int) else type(value).__name__)


class Pull:
    """A worker's program: from what it reads it takes a step toward a place of its own, and says so in noise; it notes what it read and gave."""

    def __init__(self, worker, params):
        self.worker, self.n = worker, params.size
        self.out = [np.zeros(self.n) for _ in range(2)]
        self.goal = np.random.default_rng([worker, 7]).standard_normal(self.n)
        self.given, self.seen = np.zeros(self.n), []

    def reads(self, step):
        return [Read(0, self.out[step % 2])]

    last_reads = reads

    def compute(self, turn, report):
        w = self.out[turn.step % 2]
        self.seen.append(w.copy())
        delta = 0.1 * (w - self.goal) + 0.1 * np.random.default_rng([self.worker, turn.block]).standard_normal(self.n)
        self.given += delta
        return [Push(0, Lease(delta))], ()

    def early(self):
        return None

    def finish(self, turn, report):
        return self.out[turn.step % 2].copy()


class Job:
    """Roles of one job that goes by codes ("" for none): shards, workers, and a coordinator where it is to pause."""

    def __init__(
        self, codec, policy, n_workers=3, n_servers=2, n_clocks=20, params=LARGE, repeat=False, client=CodedClient, store=CodedStore, shard=CodedShard,
        dtype=np.float64,
    ):  # fmt: skip
        self.codec, self.policy, self.n_workers, self.n_clocks, self.params, self.repeat = codec, policy, n_workers, n_clocks, params, repeat
        self.client, self.shard = client, shard
        self.by_clock = repeat or policy.commit == "clock"
        starts = [of.start for of in params.slices.values()] if codec and make_codec(codec).whole else ()
        self.cut = shards(params.size, n_servers, align=16, starts=starts)
        self.coder = lambda sender, held=None: Compressor(make_codec(codec), params, dtype, NUMPY, 5, sender, held)
        self.stores = []
        for lo, hi, _ in self.cut:
            versions = [np.zeros(hi - lo) for _ in range(n_versions(False, self.by_clock, policy.bound, repeat))]
            chain = make_chain("sgd", 0.1)
            self.stores.append(
                store(versions, lo, 1, NUMPY, chain, self.coder(n_workers, (lo, hi)), n_workers, shares(policy, self.by_clock))
                if codec
                else Store(versions, lo, 1, NUMPY, chain)
            )
        self.tasks = [Pull(w, params) for w in range(n_workers)]
        self.coders = [self.coder(w) if codec else None for w in range(n_workers)]
        self.spec = TableSpec("weights", params.size, 1, np.dtype(dtype), self.cut, 0, make_chain("sgd", 0.1))
        self.buffers, self.clients = Buffers(), []

    def roles(self, position=None, pause_at=0):
        position, n_shards = position or Position(), len(self.cut)
        workers = range(n_shards, n_shards + self.n_workers)
        coordinated = bool(pause_at or position.clock or self.policy.gate_at)
        found = []
        for store in self.stores:
            if self.by_clock:
                store.begin(position.clock)
            found.append(
                (self.shard if self.codec else Shard)(
                    "weights", workers, self.policy, store, self.buffers.allocate, repeat=self.repeat, clock=position.clock
                )
            )
        before, self.clients = self.clients, []
        for w, task in enumerate(self.tasks):
            of = (self.coders[w], self.buffers.allocate) if self.codec else ()
            client = (self.client if self.codec else Client)([self.spec], self.policy, self.by_clock, *of)
            client.clock = position.clock
            if self.codec and before:
                client.go_on_from(before[w])
            self.clients.append(client)
            role = Worker(client, task, self.n_clocks, index=w, n_workers=self.n_workers, coordinator=workers.stop if coordinated else -1)
            role.step = position.turns[w] if position.turns else 0
            found.append(role)
        if coordinated:
            gate = self.policy.gate(self.n_workers, True) if self.policy.gate_at else None
            turns = position.turns or (0,) * self.n_workers
            where = {"given": turns, "clock": position.clock, "pause_at": pause_at, "by_clock": self.policy.gate_at == "push"}
            self.coordinator = Coordinator(workers, self.n_clocks, False, gate, gate is None and self.policy.bound is not None, **where)
            found.append(self.coordinator)
        return found

    def run(self, seed=0, roles=None):
        self.result = virtual.run(roles or self.roles(), **jittered(seed))
        return self

    @property
    def values(self):
        """What the servers hold at the end."""
        return np.concatenate([store.at(store.latest).ravel() for store in self.stores])

    @property
    def residuals(self):
        """What all workers' codes have left."""
        found = np.zeros(self.params.size)
        for coder in self.coders:
            for name, array in coder.state().items():
                tensor, _, key = name.rpartition(".")
                if key == "residual":
                    found[self.params.slices[tensor]] += array
        return found


def jittered(seed):
    draw = random.Random(seed)
    return {"compute_seconds": lambda role, step, now: draw.expovariate(1.0), "latency_seconds": lambda a, b, n: draw.expovariate(20)}


class Summing(CodedStore):
    """Sums up what it decodes."""

    summed = None

    def step(self, total, tuning):
        self.summed = total.copy() if self.summed is None else self.summed + total
        super().step(total, tuning)


def lost(job):
    """Return by how much what was decoded and what is kept differs from what was given, for each tensor relative to its sum of magnitudes."""
    given = sum(task.given for task in job.tasks)
    found = np.concatenate([store.summed for store in job.stores]) + job.residuals
    return max(float(np.abs(found - given)[of].max() / np.abs(given)[of].max()) for of in job.params.slices.values())


@by_name(("codec", "policy", "n_steps"), [*((codec, policy, 60) for codec in KEEPING for policy in (Bsp(), Asp())), ("two_bit", Asp(), 1000)])
def test_what_servers_decode_and_what_workers_keep_is_what_was_given(codec, policy, n_steps):
    job = Job(codec, policy, n_clocks=n_steps // 3 + 1, store=Summing).run()
    assert lost(job) < 1e-12
    assert not codec.startswith(("one", "two", "top", "random")) or np.abs(job.residuals).max() > 1e-3, "nothing was kept, so nothing was tried"


class Uncombined(Compressor):
    """Leaves the sum of the votes as it is."""

    def combine(self, total, lo, hi):
        pass


@pytest.mark.parametrize("broken", [False, True])
def test_the_sum_of_a_clocks_votes_is_their_sign(broken, monkeypatch):
    steps = []

    class Noting(CodedStore):
        def step(self, total, tuning):
            steps.append(total.copy())
            super().step(total, tuning)

    if broken:
        monkeypatch.setattr(Compressor, "combine", Uncombined.combine)
    Job("sign_majority", Bsp(), store=Noting).run()
    assert set(np.unique(steps[0])) == ({-1.0, 1.0} if not broken else {-3.0, -1.0, 1.0, 3.0})


class ForgetsResidual(CodedClient):
    def push(self, *arguments, **options):
        for name, array in self.coder.state().items():
            if name.endswith("residual"):
                array.fill(0)
        return super().push(*arguments, **options)


class DecodesTwice(Summing):
    def apply(self, deltas, *tuning):
        super().apply([*deltas, *deltas[:1]], *tuning)


@pytest.mark.parametrize("broken", [{"client": ForgetsResidual}, {"store": DecodesTwice}], ids=["no residual", "a code twice"])
def test_the_sum_catches_what_is_lost_or_counted_twice(broken):
    assert lost(Job("two_bit", Bsp(), n_clocks=30, **{"store": Summing, **broken}).run()) > 1e-3


class Watched(CodedClient):
    """Holds each answer to what its shard knew of this worker when it sent it."""

    job = None

    def answer(self, now, source, message):
        super().answer(now, source, message)
        if message.batch >= 0:
            known = self.job.known[source, self.job.clients.index(self)].popleft()
            self.job.n_watched += self.held[source].tobytes() == known
            self.job.n_answers += 1


def watched(codec, policy, seed=0, store=CodedStore, **options):
    class Noting(store):
        def go_on(self, worker, version):
            code = super().go_on(worker, version)
            job.known[job.stores.index(self), worker].append(self.copies[worker].values.tobytes())
            return code

    job = Job(codec, policy, client=Watched, store=Noting, **options)
    job.n_watched = job.n_answers = 0
    job.known = defaultdict(deque)
    roles = job.roles()
    for client in job.clients:
        client.job = job
    job.run(seed, roles)
    return job


@by_name(("codec", "policy"), PAIRS)
def test_a_worker_holds_bit_by_bit_what_its_shard_knows_of_it(codec, policy):
    job = watched(codec, policy)
    assert job.n_watched == job.n_answers
    assert (job.n_answers >= 2 * 3 * 10) == coded.codes_answers(make_codec(codec))
    assert all((worker == job.values).all() for worker in (task.out[step % 2] for task, step in zip(job.tasks, steps(job), strict=True))), (
        "the last read is in full"
    )


def steps(job):
    return [len(task.seen) for task in job.tasks]


def test_the_watch_catches_a_shard_that_knows_something_else(monkeypatch):
    class Rounds(CodedStore):
        def _encoded(self, held, version):
            code, copy = super()._encoded(held, version)
            copy.values[3] = np.nextafter(copy.values[3], 9)
            return code, copy

    job = watched("two_bit", Bsp(), store=Rounds)
    assert job.n_watched < job.n_answers


def lacks(codec, n=400):
    """Return the norm of what a copy lacks after each of n answers about values that stand still."""
    values = np.random.default_rng(1).standard_normal(LARGE.size)
    store = CodedStore([np.zeros(LARGE.size)], 0, 1, NUMPY, None, Compressor(make_codec(codec), LARGE, "f8", NUMPY, held=(0, LARGE.size)), 1, False)
    store.go_on(0, 0)
    store.versions[0][:] = values
    found = [float(np.linalg.norm(values))]
    for version in range(1, n):
        store.go_on(0, version)
        found.append(float(np.linalg.norm(values - store.copies[0].values)))
    return np.array(found)


@pytest.mark.parametrize(
    "codec", [*(name for name in CODECS if coded.codes_answers(make_codec(name))), "bf16:residual=false", "int8:residual=false", "two_bit:0.1"]
)
def test_what_an_answer_leaves_is_sent_by_later_ones(codec):
    found = lacks(codec)
    assert (np.diff(found) <= 1e-12).all() and found[-1] < 0.2 * found[0]


@pytest.mark.parametrize("codec", ["qsgd", "random_k:unbiased=true"])
def test_of_codes_that_are_right_in_the_mean_errors_would_add_up(codec):
    assert not coded.codes_answers(make_codec(codec))
    assert lacks(codec, 20)[-1] > lacks(codec, 1)[0]


class KeepsBoth(CodedStore):
    """Adds what the last code has left to a difference that holds it already."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        pieces = self.coder.pieces(self.lo, self.hi)
        pieces[:] = [piece._replace(state=Hidden(piece.state)) for piece in pieces]


class Hidden(dict):
    def __contains__(self, key):
        return False


def far(job):
    """Return how far the workers' last reads before the end are from what the servers hold, in the mean."""
    return float(np.mean([np.abs(task.seen[-1] - job.values).mean() for task in job.tasks]))


def test_a_difference_to_which_what_was_left_is_added_again_leads_astray():
    found, broken = (far(Job("top_k:0.05", Bsp(), n_clocks=30, store=store).run()) for store in (CodedStore, KeepsBoth))
    assert broken > 2 * found, (found, broken)


@by_name("policy", POLICIES)
@pytest.mark.parametrize("repeat", [False, True])
def test_tensors_that_go_as_they_are_train_to_the_bits_of_no_code(policy, repeat):
    if repeat and not policy.repeatable:
        return
    codes, plain = (Job(codec, policy, params=SMALL, repeat=repeat).run(3) for codec in ("two_bit", ""))
    assert codes.values.tobytes() == plain.values.tobytes()
    assert all(np.array_equal(a, b) for mine, other in zip(codes.tasks, plain.tasks, strict=True) for a, b in zip(mine.seen, other.seen, strict=True))


def test_the_bits_catch_a_difference_in_place_of_values(monkeypatch):
    def exact():
        draw = np.random.default_rng(2)
        store = CodedStore([draw.standard_normal(SMALL.size)], 0, 1, NUMPY, None, Job("two_bit", Bsp(), params=SMALL).coder(0), 1, False)
        store.go_on(0, 0)
        store.versions[0][:] = draw.standard_normal(SMALL.size)
        store.go_on(0, 1)
        return store.copies[0].values.tobytes() == store.versions[0].tobytes()

    assert exact()
    monkeypatch.setattr(coded, "follow", lambda coder, code, lo, hi, copy: np.copyto(copy, copy + (code[: copy.nbytes].view(copy.dtype) - copy)))
    assert not exact()


@pytest.mark.parametrize("codec", ["two_bit", "bf16", "top_k:0.05", "low_rank", "sign_majority", "qsgd"])
@pytest.mark.parametrize("n_workers", [1, 2, 4])
@pytest.mark.parametrize("n_servers", [1, 2])
def test_each_way_a_clock_carries_one_code_of_each_shard_to_and_from_each_worker(codec, n_workers, n_servers):
    job = Job(codec, Bsp(), n_workers, n_servers).run()
    code = sum(job.coder(0).nbytes(lo, hi) for lo, hi, _ in job.cut)
    full = 8 * LARGE.size
    answers = (job.n_clocks - 1) * (code if coded.codes_answers(make_codec(codec)) else full) + 2 * full  # the first and the last one are values
    assert job.result.nbytes == n_workers * (job.n_clocks * code + answers)


def test_the_bytes_catch_answers_in_full():
    class Full(CodedShard):
        def _values(self, source, message, version):
            self.store.n_codes.pop(self.order[source], None)
            return super()._values(source, message, version)

    whole, codes = (Job("two_bit", Bsp(), shard=shard).run().result.nbytes for shard in (Full, CodedShard))
    assert whole > 2 * codes


def test_of_large_tensors_two_bits_are_a_sixteenth_both_ways():
    coder = Compressor(make_codec("two_bit"), FlatParams([("a", (1000, 640))]), "f4", NUMPY)
    assert coder.nbytes(0, 640_000) == pytest.approx(640_000 * 4 / 16, rel=0.002)  # and a unit for each 32768 values


@by_name(("codec", "policy"), [*((codec, Ssp(3)) for codec in CODECS), ("two_bit", Bsp()), ("two_bit", Warmup(10, 2))])
def test_delays_change_no_bit_where_a_run_repeats(codec, policy):
    runs = [Job(codec, policy, repeat=True).run(seed) for seed in range(3)]
    assert len({run.values.tobytes() for run in runs}) == 1
    assert len({b"".join(seen.tobytes() for task in run.tasks for seen in task.seen) for run in runs}) == 1


def test_the_bits_catch_a_code_that_depends_on_who_asks_first():
    class Numbers(CodedStore):
        """Draws noise by how many codes were made."""

        made = 0

        def go_on(self, worker, version):
            self.made += 1
            self.copies[worker] = self.copies[worker] and Copy(self.copies[worker].values, self.copies[worker].version - 100 * self.made)
            return super().go_on(worker, version + worker)

    runs = [Job("random_k:0.2", Ssp(3), store=Numbers, repeat=False).run(seed).values.tobytes() for seed in range(3)]
    assert len(set(runs)) > 1


@by_name("policy", [Bsp(), Ssp(3), Asp(), Quorum()])
def test_workers_that_read_the_same_versions_share_their_copies(policy):
    arrays = {}

    class Counting(CodedStore):
        def go_on(self, worker, version):
            code = super().go_on(worker, version)
            held = {id(copy.values): copy.values for copy in self.copies if copy is not None}
            arrays.update(held)  # kept, so that none is another one at the same place
            assert not held.keys() & {id(array) for array in self.spare}, "what a worker holds is written anew"
            return code

    Job("two_bit", policy, n_workers=6, n_servers=1, n_clocks=40, repeat=policy.repeatable, store=Counting).run()
    private = policy.bound is None or policy.gate_at
    assert len(arrays) <= (6 + 1 + 1 if private else policy.bound + 3), "of all copies ever made; one is spare, and what all began with"


def in_parts(codec, policy, pauses, forget=False, **options):
    """Run with pauses after so many turns of each; the roles are made anew, and with `forget` the shards no longer know what workers hold."""
    job, position = Job(codec, policy, **options), None
    for pause in [*pauses, 0]:
        roles = job.roles(position, pause)
        if forget:
            for store in job.stores:
                store.copies = [None] * job.n_workers
        job.run(pause + 1, roles)
        position = Position(max(role.clocks.highest for role in roles[: len(job.cut)]), job.coordinator.turns_done())
    return job.values.tobytes()


@pytest.mark.parametrize("codec", ["two_bit", "low_rank", "random_k:0.1", "qsgd"])
@by_name("policy", [Bsp(), Ssp(2)])
def test_a_pause_changes_no_bit(codec, policy):
    whole = Job(codec, policy, repeat=True).run(9).values.tobytes()
    assert in_parts(codec, policy, [7, 14], repeat=True) == whole
    if coded.codes_answers(make_codec(codec)):
        assert in_parts(codec, policy, [7, 14], forget=True, repeat=True) != whole


def test_a_code_that_overtakes_another_is_refused():
    job = Job("two_bit", Bsp())
    sent = [effect.message for effect in job.run().clients[0].push(0, Lease(np.ones(LARGE.size)))]
    assert all(message.kind == PUSH and message.data.array.dtype == np.uint8 for message in sent)
    late = sent[0]._replace(kind=ROWS, batch=job.clients[0].n_codes[0] + 2)
    with pytest.raises(RuntimeError, match="came after code"):
        job.clients[0].answer(0.0, 0, late)
