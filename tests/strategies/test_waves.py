"""Hold replicas of a pipeline that push to servers to what they promise: gaps within the bound, each gradient once, one version a wave."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.core.grid import parse_grid
from mpidml.optim.base import Chain
from mpidml.ps.waves import StageServer
from mpidml.runtime.ordered_waves import OrderedUpdates
from mpidml.runtime.resume import resumed
from mpidml.runtime.waves import Exchange, WaveUpdates
from tests.strategies import test_hybrid as hybrid
from tests.strategies.test_hybrid import grids

pytestmark = pytest.mark.shows_from(3)

N_TRACED = 20
"""Waves of a replica whose times are looked at."""
EXACT = {"deterministic": True, "tune": False}

JOB = hybrid.JOB.with_values({"collective": "auto"}, "test")


def run(comm, job=JOB, *rest, **changes):
    """Train as `hybrid.run`, whatever sums."""
    return hybrid.run(comm, job, *rest, **changes)


def of_replicas(n):
    """List the grids of n ranks with several replicas."""
    return [grid for grid in grids(n) if not grid.startswith("data=1,")]


def some(comm):
    """Return how many ranks take part, and their grids with replicas; a rank alone has none."""
    n = min(comm.size, 4)
    return n, of_replicas(n)


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize(
    "how",
    [{"microbatches": 1}, {"microbatches": 2, "transport": "mpi"}, {"optimizer": "adam", "lr": 0.01, "batch": 63, "lr_policy": "cosine"}],
    ids=str,
)
def test_without_a_gap_it_is_the_sum_over_replicas(comm, how):
    """Bit by bit where two gradients are summed, whose order does not matter."""
    n, every = some(comm)
    if not every:
        return
    for grid in every:
        _, expected = run(comm, n_ranks=n, grid=grid, **EXACT, **how)
        summary, values = run(comm, n_ranks=n, grid=grid, sync="ssp:0", **EXACT, **how)
        if values is not None:
            two = grid.startswith("data=2,")
            assert np.array_equal(values, expected) if two else np.abs(values - expected).max() < 1e-12, grid
            assert (summary["staleness_max"], summary["staleness_bound"]) == (0, 0)


def without_the_last(self, wave, close=StageServer._close):
    """Close a wave without the gradient of the last replica."""
    self.held[-1][wave].gradient[...] = 0
    return close(self, wave)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("broken", ["a wave reads one version late", "a gradient is left out"])
def test_the_check_catches_that(comm, monkeypatch, broken):
    n, every = some(comm)
    grid = every[-1]
    _, expected = run(comm, n_ranks=n, grid=grid, **EXACT)
    if broken == "a gradient is left out":
        monkeypatch.setattr(StageServer, "_close", without_the_last)
    _, values = run(comm, n_ranks=n, grid=grid, sync="ssp:1" if "late" in broken else "ssp:0", **EXACT)
    assert values is None or np.abs(values - expected).max() > 1e-3


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["ssp:1", "ssp:3", "warmup:3:2"])
def test_every_grid_is_a_parameter_server_whose_workers_read_as_late(comm, sync):
    n, every = some(comm)
    if not every:
        return
    for grid in every:
        n_replicas = parse_grid(grid, n).sizes["data"]
        _, expected = run(comm, n_ranks=n_replicas, strategy="parameter_server", microbatches=0, deterministic=True, sync=sync)
        expected = comm.bcast(expected)
        summary, values = run(comm, n_ranks=n, grid=grid, sync=sync, deterministic=True)
        if values is not None:
            assert np.abs(values - expected).max() < 1e-9, grid
            assert summary["samples"] == 400 and summary["staleness_max"] == summary["staleness_bound"] == int(sync[-1])


@pytest.mark.mpi
@pytest.mark.parametrize(("sync", "optimizer"), [("ssp:0", "clip:0.1+momentum"), ("ssp:2", "decay:0.01+clip:0.05+momentum")])
def test_a_replica_clips_its_own_gradient_over_all_its_stages_and_parts(comm, sync, optimizer):
    """As each worker of a parameter server does."""
    n, every = some(comm)
    if not every:
        return
    how = {"sync": sync, "optimizer": optimizer, **EXACT}
    for grid in every:
        _, expected = run(comm, n_ranks=parse_grid(grid, n).sizes["data"], strategy="parameter_server", microbatches=0, **how)
        expected = comm.bcast(expected)
        _, values = run(comm, n_ranks=n, grid=grid, **how)
        assert values is None or np.abs(values - expected).max() < 1e-9, grid


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["lars:0.1", "decay:0.01+lamb"])
def test_servers_measure_tensors_of_the_sum(comm, optimizer):
    """As replicas that sum do, bit by bit where there are two."""
    n, every = some(comm)
    for grid in [grid for grid in every if "tensor=1" in grid]:
        how = {"n_ranks": n, "grid": grid, "optimizer": optimizer, "lr": 0.01, **EXACT}
        _, expected = run(comm, **how)
        _, values = run(comm, sync="ssp:0", **how)
        if values is not None:
            assert np.array_equal(values, expected) if grid.startswith("data=2,") else np.abs(values - expected).max() < 1e-12, grid


@pytest.mark.mpi
@pytest.mark.parametrize("broken", ["clip", "lars"])
def test_the_checks_catch_the_norm_of_one_stage_and_tensors_measured_by_each_replica(comm, monkeypatch, broken):
    n, every = some(comm)
    if not every or (broken == "clip" and n < 4):
        return  # two stages of two replicas
    grid = "data=2,pipe=2" if n == 4 else every[0]
    how = {"n_ranks": n, "grid": grid, "sync": "ssp:0", "optimizer": "clip:0.1+momentum" if broken == "clip" else "lars:0.1", **EXACT}
    _, expected = run(comm, **how)
    if broken == "clip":
        monkeypatch.setattr(WaveUpdates, "_squares", lambda self: sum(float((held.gradient**2).sum()) for held in self.strategy.held.values()))
    else:
        split = Chain.split
        monkeypatch.setattr(Chain, "split", lambda self, whole_tensors=False: split(self))
    _, values = run(comm, **how)
    assert values is None or np.abs(values - expected).max() > 1e-6


@pytest.mark.mpi
@pytest.mark.parametrize(("schedule", "gap"), [("two_bw", 1), ("pipedream:true", 1), ("two_bw:4", 1)])
def test_waves_that_do_not_drain_read_as_their_schedule_says(comm, schedule, gap):
    """A schedule whose weights are so many updates old on every stage is a policy whose waves are so many apart."""
    if comm.size < 4:
        return  # needs two replicas of two stages
    how = {"grid": "data=2,pipe=2", "schedule": schedule, "microbatches": 0, "steps": 11, **EXACT}
    _, expected = run(comm, n_ranks=4, **how)
    summary, values = run(comm, n_ranks=4, sync=f"ssp:{gap}", **how)
    if values is not None:
        assert np.array_equal(values, expected)
        assert summary["staleness_max"] == gap
    summary, _ = run(comm, n_ranks=4, sync="ssp:3", slowdown="exponential:3", **{**how, "deterministic": False, "steps": 30})
    assert summary is None or (summary["samples"] == 1500 and 1 <= summary["staleness_max"] <= 3)


def traced(comm, folder, n, grid, sync, slowdown, **changes):
    """Train, and return the summary with the gap of each wave at its start, from the times of the trace: on rank 0, else None."""
    folder = comm.bcast(str(folder))
    job = JOB.with_values({"grid": grid, "sync": sync, "slowdown": slowdown, "steps": N_TRACED, "trace": True, **changes}, "test")
    summary, _ = run(comm, job, n, write=True, out=folder)
    comm.Barrier()
    if comm.rank:
        return None, None
    events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    sizes, firsts = parse_grid(grid, n).sizes["data"], {}
    for replica in range(sizes):
        own = [event for event in events if event["pid"] == parse_grid(grid, n).rank(data=replica) and event["ph"] == "X"]
        started = {event["args"]["clock"]: event["ts"] + event["dur"] for event in own if event["name"] == "pull"}
        pushed = sorted(event["ts"] for event in own if event["name"] == "push")
        assert sorted(started) == list(range(N_TRACED)) and len(pushed) == N_TRACED
        firsts[replica] = started, pushed
    done = [pushed for _, pushed in firsts.values()]
    starts = [start for started, _ in firsts.values() for start in started.items()]
    return summary, [wave - min(sum(at <= time for at in pushed) for pushed in done) for wave, time in starts]


@pytest.mark.mpi
@pytest.mark.parametrize(("sync", "bound"), [("ssp:0", 0), ("ssp:2", 2), ("dssp:0:3", 3)])
@pytest.mark.parametrize("slowdown", ["permanent:8", "exponential:6"])
def test_no_wave_starts_further_ahead_than_the_bound_and_slow_replicas_are_left_behind(comm, tmp_path, sync, bound, slowdown):
    n, every = some(comm)
    if not every:
        return
    for k, grid in enumerate(every[-2:]):
        summary, gaps = traced(comm, tmp_path / str(k), n, grid, sync, slowdown)
        if summary is not None:
            assert max(gaps) <= bound, grid
            assert summary["staleness_max"] <= bound == summary["staleness_bound"] and summary["samples"] == 50 * N_TRACED
            assert sum(summary["staleness_histogram"].values()) == N_TRACED * parse_grid(grid, n).sizes["data"]
            if slowdown.startswith("permanent"):
                assert max(gaps) == bound or sync.startswith("dssp"), grid
                assert bound == 0 or max(gaps) > 0


@pytest.mark.mpi
def test_the_check_catches_a_start_without_a_gate(comm, tmp_path, monkeypatch):
    """Such a wave reads what there is: so many versions and slots are kept that nothing but the gap tells."""
    n, every = some(comm)
    if not every:
        return
    monkeypatch.setattr(StageServer, "choose", lambda self, replica, wave: self.latest)
    monkeypatch.setattr("mpidml.strategies.hybrid.Hybrid.n_versions", lambda self, s: N_TRACED)
    init = Exchange.__init__
    monkeypatch.setattr(Exchange, "__init__", lambda self, comm, held, server, waiting, n: init(self, comm, held, server, waiting, 2 * N_TRACED))
    summary, gaps = traced(comm, tmp_path, n, every[-1], "ssp:1", "permanent:8")
    assert summary is None or (max(gaps) > 1 and summary["staleness_max"] > 1)


@pytest.mark.mpi
def test_the_check_catches_a_stage_that_reads_newer_weights_than_the_first_has_chosen(comm, monkeypatch):
    if comm.size < 4:
        return  # needs two stages
    how = {"n_ranks": 4, "grid": "data=2,pipe=2", "sync": "ssp:2", **EXACT}
    _, expected = run(comm, **how)
    read = StageServer.read
    part = comm.rank % 2  # the stage
    monkeypatch.setattr(StageServer, "read", lambda self, version: read(self, max(version, self.latest) if part else version))
    _, values = run(comm, slowdown="permanent:8", **{**how, "steps": 8})
    assert values is None or np.abs(values - expected).max() > 1e-6


@pytest.mark.mpi
def test_all_stages_of_a_replica_read_the_version_that_its_first_has_chosen(comm, monkeypatch):
    n, every = some(comm)
    if not every:
        return
    grid = next((grid for grid in every if "pipe=2" in grid), every[0])
    found, weights = {}, WaveUpdates.weights

    def noted(self, held, wave):
        got = weights(self, held, wave)
        server = self.exchanges[held.number].server
        versions, newest = server.store.versions, server.latest
        at = next(v for v in range(newest, newest - len(versions), -1) if versions[v % len(versions)] is got)
        found[self.replica, held.number, wave] = at
        return got

    monkeypatch.setattr(WaveUpdates, "weights", noted)
    run(comm, n_ranks=n, grid=grid, sync="ssp:3", slowdown="exponential:6", steps=30)
    reads = {key: version for of in comm.allgather(found) for key, version in of.items()}
    n_replicas, n_stages = parse_grid(grid, n).sizes["data"], parse_grid(grid, n).sizes["pipe"]
    assert len(reads) == n_replicas * n_stages * 30
    assert all(version == reads[replica, 0, wave] and 0 <= wave - version <= 3 for (replica, _, wave), version in reads.items())


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["momentum", "adam", "lamb"])
def test_a_run_goes_on_bit_by_bit_after_a_pause(comm, tmp_path, optimizer):
    """Also where a wave after it reads a version from before it."""
    n, every = some(comm)
    if not every:
        return
    how = {"optimizer": optimizer, "lr": 0.01, "deterministic": True, "sync": "ssp:2"}
    folder = comm.bcast(str(tmp_path / "run"))
    for k, grid in enumerate([grid for grid in every if optimizer != "lamb" or "tensor=1" in grid][: None if optimizer == "momentum" else 1]):
        _, expected = run(comm, n_ranks=n, grid=grid, **how)
        _, paused = run(comm, n_ranks=n, checkpoint_every=3, write=True, out=f"{folder}{k}", grid=grid, **how)
        assert paused is None or np.array_equal(paused, expected), grid
        run(comm, n_ranks=n, steps=5, checkpoint_every=5, write=True, out=f"{folder}-{k}", grid=grid, **how)
        comm.Barrier()
        summary, values = run(comm, resumed(f"{folder}-{k}", {"steps": 8}), n)
        assert values is None or (np.array_equal(values, expected) and summary["samples"] == 400), grid
        comm.Barrier()


@pytest.mark.mpi
@pytest.mark.parametrize(
    "end",
    [
        {"seconds": 0.3, "steps": 0, "epochs": 0}, {"target": "0.2", "steps": 0, "epochs": 9}, {"epochs": 3, "steps": 0, "patience": 1, "validate": 0.1},
        {"batch": 5, "steps": 321},
    ],
    ids=str,
)  # fmt: skip
def test_it_ends_however_it_is_to_end(comm, end):
    """The last batch of an epoch has fewer rows than some grids have replicas: such a wave is empty, and pushed all the same."""
    n, every = some(comm)
    if not every:
        return
    for grid in every[-2:]:
        batch = {"batch": 50} | end
        summary, _ = run(comm, n_ranks=n, grid=grid, sync="ssp:2", slowdown="exponential:1", microbatches=1, **batch)
        assert summary is None or (summary["staleness_max"] <= 2 and summary["clocks"] > 0 and math.isfinite(summary["test_loss"]))


@pytest.mark.mpi
def test_hosts_of_one_rank_give_the_bits_of_one_host(comm):
    n, every = some(comm)
    if not every:
        return
    how = {"n_ranks": n, "grid": every[0], "sync": "ssp:1", **EXACT}
    _, expected = run(comm, **how)
    _, values = run(comm, per_host=1, **how)
    assert values is None or np.array_equal(values, expected)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("sync", "updates", "says"),
    [("ssp:1", WaveUpdates, r"waits for the start of wave [34]; replica .* has pushed 2|wait-limit"), ("asp", OrderedUpdates, r"waits for|wait-limit")],
    ids=["ssp:1", "asp"],
)
def test_an_exception_in_one_replica_is_no_hang(comm, monkeypatch, sync, updates, says):
    """The others come to the limit of their waits, and say for whom they wait."""
    n, every = some(comm)
    if not every:
        return
    start = updates.start

    def fails(self, held):
        if comm.rank == n - 1 and self.clock == 2:
            raise RuntimeError("one replica fails")
        return start(self, held)

    monkeypatch.setattr(updates, "start", fails)
    if comm.rank < n:
        with pytest.raises(Exception, match=f"one replica fails|{says}"):
            run(comm, n_ranks=n, grid=every[-1], sync=sync, wait_limit=1.0)
    else:
        run(comm, n_ranks=n)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sync": "adaptive"}, "use asp or quorum"), ({"sync": "quorum:9"}, "give at most quorum:"), ({"sync": "asp", "deterministic": True}, "cannot repeat"),
        ({"sync": "dssp:0:2", "deterministic": True}, "cannot repeat"), ({"sync": "ssp:1", "collective": "ring"}, "leave it out"),
        ({"sync": "ssp:1", "servers": "1"}, "leave it out"), ({"sync": "ssp:1", "reads": "eager"}, "leave it out"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(comm, changes, told):
    if comm.size == 1:
        return  # one rank has no replicas
    with pytest.raises(UserError) as caught:
        run(comm, **{"grid": f"data={comm.size}", **changes})
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.mpi
def test_what_a_grid_cannot_is_refused_in_one_line(comm):
    with pytest.raises(UserError, match="one replica"):
        run(comm, grid=f"pipe={comm.size}", sync="ssp:1")
    if comm.size < 4:
        return
    late = [{"grid": "data=2,pipe=2", "microbatches": 0, "schedule": how, "sync": sync} for how, sync in
            (("two_bw", "ssp:0"), ("two_bw", "warmup:4:2"), ("two_bw", "quorum:1"), ("pipedream", "ssp:0"))]  # fmt: skip
    parts = {"grid": "data=2,tensor=2", "optimizer": "lars", "sync": "asp"}
    for changes, told in (*((changes, "give --sync ssp:") for changes in late), (parts, "tensor=1")):
        part = comm.Split(0 if comm.rank < 4 else 1, comm.rank)
        if comm.rank < 4:
            with pytest.raises(UserError, match=told):
                hybrid.trained(part, JOB, **changes)
        part.Free()


@pytest.mark.mpi
def test_what_each_replica_has_measured_for_itself_is_not_left_out_of_a_checkpoint_in_silence(comm, tmp_path):
    if comm.size == 1:
        return  # one rank has no replicas
    (tmp_path / "heavy.py").write_text(hybrid.HEAVY)
    how = {"grid": f"data={comm.size}", "sync": "ssp:1", "optimizer": f"{tmp_path}/heavy.py+clip+sgd"}
    assert np.isfinite(run(comm, **how)[1]).all()
    with pytest.raises(UserError, match=r"--checkpoint-every 4: under --sync ssp:1 each replica has '0\.heavy\.v' of .* for itself"):
        run(comm, checkpoint_every=4, **how)
