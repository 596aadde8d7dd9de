"""Hold replicas of a pipeline that push in one order (asp, quorum) to what they promise: a serial loop over that order computes the same."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.core.errors import WaitTimeout
from mpidml.core.grid import parse_grid
from mpidml.data.readers import read
from mpidml.data.sampler import Sampler
from mpidml.data.split import hold_out
from mpidml.nn.models import build
from mpidml.optim.base import make_chain
from mpidml.ps.order import OrderedServer
from mpidml.ps.store import Store
from mpidml.runtime.channel import Waiting
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.credited import SLOTS, Credited
from mpidml.runtime.order import Order
from mpidml.runtime.resume import resumed
from mpidml.runtime.waves import WaveStepper
from tests.strategies.test_waves import JOB, run, some

pytestmark = pytest.mark.shows_from(3)

CHAIN = {"optimizer": "decay:0.01+clip:0.05+lamb", "lr": 0.01}
WAYS = [{}, {"microbatches": 1, "transport": "mpi"}, {"schedule": "two_bw", "microbatches": 0, "steps": 14}, {"schedule": "zero_bubble"}, CHAIN]
ASP = {"sync": "asp", "tune": False, "slowdown": "exponential:2"}


class Pushes:
    """What the servers of this rank have made of pushes: of each update its pushes (replica, wave, version); how many were dropped; slots and copies in use."""

    def __init__(self, monkeypatch):
        self.updates, self.n_dropped, self.most_slots, self.most_copies, self.clock = {}, {}, 0, 0, 0
        self.versions = set()
        update, advance, push, end = OrderedServer._update, OrderedServer.advance, Credited._take, Order.end
        heard = self

        def noted(self):
            heard.updates.setdefault(id(self), []).append([(replica, pushed.wave, pushed.version) for replica, pushed in self.group])
            return update(self)

        def advanced(self, now):
            heard.most_copies = max(heard.most_copies, len(self.copies))
            heard.versions.add(len(self.store.versions))
            found = advance(self, now)
            heard.n_dropped[id(self)] = self.n_dropped
            return found

        def taken(self, rank):
            push(self, rank)
            heard.most_slots = max(heard.most_slots, self.n_taken[rank] - self.n_freed[rank])

        def ended(self, n_pushed):
            heard.clock = self.strategy.driver.clock
            return end(self, n_pushed)

        monkeypatch.setattr(OrderedServer, "_update", noted)
        monkeypatch.setattr(OrderedServer, "advance", advanced)
        monkeypatch.setattr(Credited, "_take", taken)
        monkeypatch.setattr(Order, "end", ended)

    def agreed(self, comm, n):
        """Return the updates, if all stages of all replicas have made the same, and how many pushes each has dropped (Collective on comm)."""
        everyone = [(updates, dropped) for of in comm.allgather((self.updates, self.n_dropped)) for updates, dropped in zip(of[0].values(), of[1].values(), strict=True)]
        assert len(everyone) >= n and all(each == everyone[0] for each in everyone)
        return everyone[0]


def serial(updates, n_replicas, job=JOB, weight=1.0):
    """Make the updates one after the other: each push is the gradient of a replica's share of its wave, at what was there after so many pushes.

    It has a `weight`, and is clipped by itself; what does not shrink with the gradient is an update's share.
    """
    raw = read(job.data)
    ids, _ = hold_out(len(raw.x), job.hold_out, job.seed)
    x, y = raw.x[ids].reshape(len(ids), -1).astype(np.float64), raw.y[ids].astype(np.int64)
    x = (x - x.mean(axis=0)) / np.where(x.std(axis=0) == 0, 1, x.std(axis=0))
    net = build("mlp", x.shape[1], 10, job.hidden, dtype="float64", backend="numpy")
    sampler = Sampler(len(x), job.batch, n_replicas, job.seed)
    chain = make_chain(job.optimizer, job.rate)
    chain.each_sees(1.0 / n_replicas)
    chain.see(net.params)
    before, after = chain.split(whole_tensors=True)
    store = Store([net.init(job.seed)], 0, 1, net.backend, after)
    values = [store.versions[0].copy()]
    for group in updates:
        total = np.zeros_like(values[0])
        for replica, wave, version in group:
            rows, g = sampler.indices(wave, replica), np.zeros_like(total)
            step = net.bind(rows.size, values[version], g)
            step.x[...] = x[rows]
            step.load(y, rows)
            step.run(weight / sampler.batch_size(wave), None)
            if before is not None:
                before.transform(net.backend, g, {}, values[version], wave + 1)
            total += g
        store.step(total)
        values += [store.versions[0].copy()] * len(group)
    return values[-1]


def slow_replica(monkeypatch, seconds):
    """Let replica 0 sleep so long in each wave."""
    monkeypatch.setattr(WaveStepper, "be_slow", lambda self, clocks: None if self.comm.rank else self._sleep(seconds))


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_asp_is_a_serial_loop_over_the_order_in_which_its_pushes_came(comm, monkeypatch, way):
    """So no wave mixes weights, on any stage; and each gradient of each stage is in one update, the same on all ranks."""
    n, every = some(comm)
    for grid in [grid for grid in every if ("schedule" not in way or "pipe=2" in grid) and (way is not CHAIN or "tensor=1" in grid)]:
        found = Pushes(monkeypatch)
        summary, values = run(comm, n_ranks=n, grid=grid, **ASP, **way)
        job, n_replicas = JOB.with_values(way, "test"), parse_grid(grid, n).sizes["data"]
        updates, n_dropped = found.agreed(comm, n)
        pushes = sorted(push[:2] for group in updates for push in group)
        assert n_dropped == 0 and pushes == [(r, wave) for r in range(n_replicas) for wave in range(job.steps)]
        assert found.most_slots <= SLOTS and found.most_copies <= (3 if way.get("schedule") == "two_bw" else 2) and found.versions <= {1}
        if values is not None:
            assert np.abs(values - serial(updates, n_replicas, job)).max() < 1e-9, grid
            assert summary["samples"] == job.steps * 50 and summary["staleness_bound"] is None
        monkeypatch.undo()


@pytest.mark.mpi
@pytest.mark.shows_from(4)
@pytest.mark.parametrize("sync", ["asp", "quorum:1"])
@pytest.mark.parametrize(("schedule", "microbatches"), [("zero_bubble", 8), ("pipedream", 0), ("two_bw", 0)])
def test_parts_of_a_layer_go_on_whichever_of_them_hears_first_of_the_next_wave(comm, monkeypatch, sync, schedule, microbatches):
    """All parts but the first hear of it while they push, and so before they are done with what the wave before has read."""
    if comm.size < 4:
        return  # needs four ranks
    push, early = Credited.push, comm.rank % 2

    def listens(self, wave, version):
        push(self, wave, version)
        if early:
            time.sleep(2e-3)
            self.waiting.meanwhile()

    monkeypatch.setattr(Credited, "push", listens)
    summary, values = run(comm, n_ranks=4, grid="data=2,tensor=2", schedule=schedule, microbatches=microbatches, sync=sync, tune=False)
    assert values is None or (np.isfinite(values).all() and summary["clocks"] > 0)


@pytest.mark.mpi
@pytest.mark.parametrize("broken", ["newest", "order"])
def test_the_check_catches_a_stage_that_reads_the_newest_and_an_update_that_is_left_out(comm, monkeypatch, broken):
    n, every = some(comm)
    if not every:
        return
    grid = every[-1]
    if broken == "newest":
        read = OrderedServer.read
        monkeypatch.setattr(OrderedServer, "read", lambda self, wave: read(self, wave) if wave < 2 else self.store.versions[0])
    found = Pushes(monkeypatch)
    _, values = run(comm, n_ranks=n, grid=grid, **ASP)
    updates, _ = found.agreed(comm, n)
    if broken == "order":
        updates = updates[1:] + updates[:1]
        updates = [[(r, w, max(0, v - 1)) for r, w, v in group] for group in updates]
    assert values is None or np.abs(values - serial(updates, parse_grid(grid, n).sizes["data"])).max() > 1e-7


@pytest.mark.mpi
@pytest.mark.parametrize("way", [{}, {"optimizer": "adam", "lr": 0.01, "batch": 63, "lr_policy": "inv"}, {"optimizer": "clip:0.1+momentum"}], ids=str)
def test_a_quorum_of_all_is_bulk_synchronous_bit_by_bit(comm, tmp_path, way):
    """As waves without a gap are, whose replicas clip likewise and whose sums have the same order. Also after pauses, and where it goes on."""
    n, every = some(comm)
    for k, grid in enumerate(every if not way else every[-1:]):
        n_replicas = parse_grid(grid, n).sizes["data"]
        how = {"n_ranks": n, "grid": grid, "partition": "equal", **way}  # measured speeds give parts, and sums, of other lengths
        bulk = {"sync": "ssp:0"} if "clip" in str(way) or n_replicas > 2 else {"sync": "bsp", "deterministic": True}  # and choose what sums
        _, expected = run(comm, **bulk, **how)
        summary, values = run(comm, sync=f"quorum:{n_replicas}", **how)
        resumes = values
        if way:
            folder = comm.bcast(str(tmp_path / str(k)))
            run(comm, sync=f"quorum:{n_replicas}", write=True, out=folder, checkpoint_every=3, **{**how, "steps": 5})
            comm.Barrier()
            _, resumes = run(comm, resumed(folder, {"steps": 8}), n)
            comm.Barrier()
        if values is not None:
            assert np.array_equal(values, expected) and np.array_equal(values, resumes), grid
            assert (summary["staleness_max"], summary["dropped_samples"]) == (0, 0)


@pytest.mark.mpi
def test_a_quorum_takes_the_first_gradients_and_drops_the_others(comm, monkeypatch):
    n, every = some(comm)
    for grid in every[-2:]:
        n_replicas = parse_grid(grid, n).sizes["data"]
        needed = max(1, n_replicas - 1)
        found = Pushes(monkeypatch)
        summary, values = run(comm, n_ranks=n, grid=grid, sync="quorum", slowdown="exponential:3", steps=16)
        updates, n_dropped = found.agreed(comm, n)
        assert [[wave for _, wave, _ in group] for group in updates] == [[wave] * needed for wave in range(16)]
        assert all(version == wave for group in updates for _, wave, version in group)
        reads = [[(replica, wave, wave * needed) for replica, wave, _ in group] for group in updates]
        if values is not None:
            assert np.abs(values - serial(reads, n_replicas, JOB.with_values({"steps": 16}, "test"), n_replicas / needed)).max() < 1e-9
            assert summary["staleness_max"] == 0 and (summary["dropped_samples"] > 0) == (n_dropped > 0)
        monkeypatch.undo()


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["asp", "ssp:1"])
def test_a_replica_that_is_slow_for_good_holds_up_none_under_asp(comm, monkeypatch, sync):
    """Also the one that gives pushes their places. Under a bound all have its pace."""
    n, every = some(comm)
    if not every:
        return
    grid, clocks = every[-1], []
    found = Pushes(monkeypatch)
    slow_replica(monkeypatch, 0.2)
    if sync != "asp":
        monkeypatch.setattr("mpidml.runtime.waves.WaveStepper._left", lambda self: clocks.append(self.clock))
    run(comm, n_ranks=n, grid=grid, sync=sync, steps=0, epochs=0, seconds=2.0, microbatches=1)
    done = comm.allgather(found.clock if sync == "asp" else (clocks or [0])[0])
    slow, fast = done[0], done[parse_grid(grid, n).rank(data=1)]
    assert fast > slow + 4 * SLOTS if sync == "asp" else fast <= slow + 2


@pytest.mark.mpi
def test_a_run_goes_on_where_each_replica_stood(comm, tmp_path, monkeypatch):
    """A pause comes once the replicas have done so much in the mean; each goes on with its own next wave, and none is left out or made twice."""
    n, every = some(comm)
    slow_replica(monkeypatch, 0.1)
    for k, grid in enumerate(every[-2:]):
        n_replicas = parse_grid(grid, n).sizes["data"]
        folder = comm.bcast(str(tmp_path / str(k)))
        how = {"n_ranks": n, "grid": grid, "sync": "asp", "microbatches": 1}
        run(comm, write=True, out=folder, checkpoint_every=12, steps=24, keep_checkpoints=9, **how)
        comm.Barrier()
        turns = [json.loads(path.read_text())["facts"]["turns"] for path in Path(folder).rglob("manifest.json")]
        assert len(turns) == 2 and all(12 <= sum(of) // n_replicas < 24 or of == [24] * n_replicas for of in turns)
        assert any(of[0] < min(of[1:]) for of in turns)
        summary, values = run(comm, resumed(folder, {"steps": 30}), n)
        assert summary is None or (summary["samples"] == 1500 and np.isfinite(values).all())
        comm.Barrier()


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["asp", "quorum:1"])
@pytest.mark.parametrize(
    "end",
    [
        {"seconds": 0.3, "steps": 0, "epochs": 0}, {"target": "0.2", "steps": 0, "epochs": 9}, {"epochs": 3, "steps": 0, "patience": 1, "validate": 0.1},
        {"batch": 5, "steps": 321},
    ],
    ids=str,
)  # fmt: skip
def test_it_ends_however_it_is_to_end(comm, end, sync):
    n, every = some(comm)
    for grid in every[:1] if "seconds" in end else every[-1:]:
        batch = {"batch": 50} | end
        summary, _ = run(comm, n_ranks=n, grid=grid, sync=sync, slowdown="exponential:1", microbatches=1, **batch)
        assert summary is None or (summary["clocks"] > 0 and math.isfinite(summary["test_loss"]))


@pytest.mark.mpi
def test_a_push_waits_for_a_slot_and_for_nothing_else(comm):
    """Rank 0 pushes, nobody takes: as many as SLOTS go out, the next one waits; once all take it goes, and none is lost."""
    if comm.size == 1:
        return  # nobody to push to
    counted = CountedComm(comm)
    try:
        held = SimpleNamespace(gradient=np.ones(3), number=0)
        pushed = []
        server = SimpleNamespace(push=lambda replica, push: pushed.append((replica, push.wave, push.gradient.copy())))
        exchange = Credited(counted, held, server, Waiting(0.3))
        if comm.rank == 0:
            for wave in range(SLOTS):
                held.gradient[:] = wave
                exchange.push(wave, 0)
            with pytest.raises(WaitTimeout, match="a slot for the gradient"):
                exchange.push(SLOTS, 0)
        comm.Barrier()
        exchange.waiting.limit_seconds = 20.0

        def all_here(n):
            exchange.serve()
            return len(pushed) == n

        exchange.waiting.until(lambda: all_here(SLOTS), lambda: "pushes")
        for _ in range(SLOTS):
            exchange.let_go(0)
        if comm.rank == 0:
            exchange.push(SLOTS, 0)
        exchange.waiting.until(lambda: all_here(SLOTS + 1), lambda: "pushes")
        exchange.let_go(0)
        assert [(replica, wave) for replica, wave, _ in pushed] == [(0, wave) for wave in range(SLOTS + 1)]
        assert [g[0] for *_, g in pushed[:SLOTS]] == list(range(SLOTS))
        comm.Barrier()
        exchange.free()
    finally:
        counted.free()
