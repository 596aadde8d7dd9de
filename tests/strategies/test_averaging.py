"""Hold replicas to what brings them together: a serial loop of all of them, the mixing matrix, the centre's linear recursion."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mpidml.collectives.gossip import Gossip
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.rounds import moved
from mpidml.data.sampler import Sampler
from mpidml.runtime import replicas
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.replicas import Replicas, most_moving_rate
from mpidml.runtime.resume import resumed
from mpidml.runtime.stepping import Votes
from mpidml.strategies.base import Run
from tests.strategies.test_identities import SMALL
from tests.training import trained

JOB = SMALL.with_values({"strategy": "averaging", "wait_limit": 20.0, "average_every": 3, "collective": "ring"}, "test")
SUMS = [name for name in plugins.names("mpidml.collectives") if plugins.load("mpidml.collectives", name).exact]


def run(comm, job=JOB, **changes):
    return trained(comm, job, **changes)


def prepared(comm, **changes):
    whole = Run(JOB.with_values(changes, "test"), comm, quiet=True, write=False, brief=True)
    return whole.strategy, whole


def simulated(comm, way, **changes):
    """Train all replicas one after the other in this process, `way(replicas, centre)` bringing them together; return them and the centre."""
    strategy, whole = prepared(CountedComm(comm), **changes)
    n, net, data, chain, job = comm.size, strategy.net, strategy.data, strategy.chain, strategy.job
    replicas, centre = [net.init(job.seed) for _ in range(n)], net.init(job.seed)
    states, g = [chain.init(net.n_params, net.dtype) for _ in range(n)], np.zeros(net.n_params, net.dtype)
    sampler = Sampler(len(data.x), job.batch, n, job.seed)
    for clock in range(job.steps):
        for rank, w in enumerate(replicas):
            rows = sampler.indices(clock, rank)
            step = net.bind(rows.size, w, g)
            step.x[:] = data.x[rows]
            step.y[:] = data.y[rows]
            step.load_labels()
            step.run(n / sampler.batch_size(clock))
            chain.apply(net.backend, w, w, g, states[rank], clock + 1, strategy.rates(clock) if strategy.rates is not None else 1.0)
        if not (clock + 1) % job.average_every:
            way(replicas, centre)
    whole.strategy.free()
    whole.comm.free()
    return np.array(replicas), centre


def to_mean(replicas, centre):
    centre[:] = np.mean(replicas, axis=0)
    for w in replicas:
        w[:] = centre


def mixed(graph):
    def way(replicas, centre):
        for w, new in zip(replicas, Gossip(graph).matrix(len(replicas)) @ np.array(replicas), strict=True):
            w[:] = new

    return way


def pulled(rate):
    def way(replicas, centre):
        apart = [w - centre for w in replicas]
        for w, of in zip(replicas, apart, strict=True):
            w -= rate * of
            centre += rate * of

    return way


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "clip:1e9+momentum"])
def test_the_mean_after_every_clock_is_data_parallel(comm, optimizer):
    other = JOB.with_values({"strategy": "data_parallel", "average_every": 8, "optimizer": optimizer}, "test")
    summed, expected = run(comm, other)
    summary, values = run(comm, average_every=1, optimizer=optimizer)
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    assert summary["test_loss"] == pytest.approx(summed["test_loss"], rel=1e-9)
    late = run(comm, average_every=2, optimizer=optimizer)[1]
    assert comm.size == 1 or np.abs(late - expected).max() > 1e-6, "a mean that comes late is another run"


WAYS = {"mean": to_mean, "elastic:0.3": pulled(0.3), "gossip": mixed("ring"), "gossip:exponential": mixed("exponential")}


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("more", [{}, {"optimizer": "adam", "lr": 0.01, "lr_policy": "warmup:3"}, {"optimizer": "lars:0.1"}], ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_each_way_is_a_serial_loop_of_all_replicas(comm, name, more):
    flag = "collective" if "gossip" in name else "averaging"
    replicas, centre = simulated(comm, WAYS[name], **{flag: name}, **more)
    summary, values = run(comm, **{flag: name}, **more)
    mean = replicas.mean(axis=0)
    np.testing.assert_allclose(values, centre if "elastic" in name else mean, rtol=1e-9, atol=1e-12)
    apart = np.sqrt(((replicas - mean) ** 2).sum(axis=1).mean())
    assert summary["consensus_distance"] == pytest.approx(apart, rel=1e-9, abs=1e-12)
    assert [clock for clock, _ in summary["consensus_distances"]] == ([8] if "gossip" in name else [3, 6, 8])
    assert summary["samples"] == 8 * 50


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["mean", "elastic:0.3", "gossip"])
def test_what_is_looked_at_once_an_epoch_is_what_stands_for_all_replicas(comm, name):
    """Four clocks are an epoch here; at its end the replicas have gone one clock alone."""
    of = {"collective" if name == "gossip" else "averaging": name, "batch": 400}
    replicas, centre = simulated(comm, WAYS[name], steps=4, **of)
    counted, kept = CountedComm(comm), {}
    whole = Run(JOB.with_values(of, "test"), counted, quiet=True, write=False, brief=True)
    whole.drive()
    whole.end(kept)
    if comm.rank == 0:
        loss, _ = whole.net.score(centre if "elastic" in name else replicas.mean(axis=0), whole.data.test_x, whole.data.test_y)
        (looked,) = [row["test_loss"] for row in kept["metrics"] if "test_loss" in row]
        assert looked == pytest.approx(loss / len(whole.data.test_x), rel=1e-9)
    counted.free()


@pytest.mark.mpi(min_size=2)
def test_the_serial_loop_catches_replicas_that_do_not_meet(comm, monkeypatch):
    expected = simulated(comm, to_mean)[0].mean(axis=0)
    monkeypatch.setattr(Replicas, "exchange", lambda self, clock: None)
    assert np.abs(run(comm)[1] - expected).max() > 1e-6


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("name", SUMS)
def test_the_mean_is_the_same_by_every_sum(comm, name):
    expected = simulated(comm, to_mean)[0].mean(axis=0)
    np.testing.assert_allclose(run(comm, collective=name)[1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.mpi
@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_gossip_keeps_the_mean_and_the_replicas_follow_its_matrix(comm, graph):
    counted = CountedComm(comm)
    strategy, whole = prepared(counted, collective=f"gossip:{graph}", lr=1e-300)
    replicas = strategy.replicas
    replicas.replica[:] = np.random.default_rng(comm.rank).standard_normal(replicas.replica.size)
    before, matrix = np.array(comm.allgather(replicas.replica)), Gossip(graph).matrix(comm.size)
    for k in range(1, 4):
        replicas.exchange(k)
    after = np.array(comm.allgather(replicas.replica))
    np.testing.assert_allclose(after, np.linalg.matrix_power(matrix, 3) @ before, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), rtol=1e-12, atol=1e-14)
    unfair = matrix + np.eye(comm.size) * 1e-6
    assert not np.allclose((unfair @ before).mean(axis=0), before.mean(axis=0), rtol=1e-12, atol=1e-14)
    strategy.free()
    counted.free()
    del whole


def star(n, rate):
    """Return what one meeting of n replicas and the centre (last) does."""
    matrix = np.eye(n + 1)
    matrix[:n, :n] *= 1 - rate
    matrix[:n, n] = matrix[n, :n] = rate
    matrix[n, n] = 1 - n * rate
    return matrix


LINEAR = '[[layer]]\ntype = "dense"\n'


def affine(net, data, rows, scale):
    """Return A, b of the gradient A w - b of the rows, from what it is at 0 and at each unit vector."""
    at = []
    for w in np.eye(net.n_params + 1, net.n_params, -1):
        step = net.bind(rows.size, w.copy(), g := np.empty(net.n_params))
        step.x[:], step.targets[:] = data.x[rows], data.y[rows]
        step.run(scale)
        at.append(g)
    return (np.array(at[1:]) - at[0]).T, -at[0]


@pytest.mark.mpi
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_elastic_on_a_quadratic_is_its_linear_recursion(comm, rate, tmp_path):
    """Least squares with a full batch: the steps of all replicas in a clock are one matrix, and so is their meeting."""
    (tmp_path / "net.toml").write_text(LINEAR)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((30, 4)), rng.standard_normal(30)
    of = {"data": "arrays", "task": "regress", "loss": "squared_error", "model": str(tmp_path / "net.toml"), "hidden": Job.hidden, "hold_out": 0.0}
    counted, kept, n = CountedComm(comm), {}, comm.size
    job = JOB.with_values(of | {"batch": 30, "steps": 12, "lr": 0.1, "optimizer": "sgd", "averaging": f"elastic:{rate}"}, "test")
    whole = Run(job, counted, quiet=True, write=False, brief=True, arrays=(x, y))
    strategy, net, m = whole.strategy, whole.net, whole.net.n_params
    state = np.append(np.tile(net.init(job.seed), n + 1), 1.0)  # replicas, centre, 1
    meet = np.eye(state.size)
    meet[:-1, :-1] = np.kron(star(n, rate), np.eye(m))
    for clock in range(12):
        step = np.eye(state.size)
        for rank in range(n):
            a, b = affine(net, whole.data, strategy.sampler.indices(clock, rank), n / 30)
            at = slice(rank * m, (rank + 1) * m)
            step[at, at] -= 0.1 * a
            step[at, -1] += 0.1 * b
        state = step @ state
        if clock % 3 == 2:
            state = meet @ state
    whole.drive()
    whole.end(kept)
    np.testing.assert_allclose(kept["values"], state[n * m : -1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(strategy.replicas.replica, state[comm.rank * m : (comm.rank + 1) * m], rtol=1e-9, atol=1e-12)
    counted.free()


@pytest.mark.mpi
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_without_gradients_elastic_is_a_power_of_one_matrix_and_so_is_elastic_async_in_turn(comm, rate):
    for name, one in (("elastic", star(comm.size, rate)), ("elastic_async", in_turn(comm.size, rate))):
        counted = CountedComm(comm)
        flags = {"collective": "auto"} if name == "elastic_async" else {}
        strategy, _ = prepared(counted, averaging=f"{name}:{rate}", **flags)
        replicas = strategy.replicas
        replicas.replica[:] = np.random.default_rng(comm.rank).standard_normal(replicas.replica.size)
        before = np.array([*comm.allgather(replicas.replica), replicas.weights.copy()])
        comm.Barrier()
        for k in range(3):
            for rank in range(comm.size if name == "elastic_async" else 1):
                if name == "elastic" or rank == comm.rank:
                    replicas.exchange(k)
                comm.Barrier()
        after = np.array([*comm.allgather(replicas.replica), replicas.weights])
        np.testing.assert_allclose(after, np.linalg.matrix_power(one, 3) @ before, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), rtol=1e-12, atol=1e-14)
        strategy.free()
        counted.free()


def in_turn(n, rate, descent=1.0):
    """Return what a round in which each replica steps by `descent` w, then meets the centre, does to all; `exchange` of one follows the same lines."""
    found = np.eye(n + 1)
    for rank in range(n):
        one = np.eye(n + 1)
        one[np.ix_([rank, n], [rank, n])] = star(1, rate) @ np.diag([descent, 1.0])
        found = one @ found
    return found


def radius(matrix):
    return np.abs(np.linalg.eigvals(matrix)).max()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_below_its_bound_the_moving_rate_is_stable_on_any_quadratic_and_above_it_is_not(n):
    """Zhang, Choromanska and LeCun 2015, section 4, for steps that come before the meeting; the rate of descent times the curvature is from 0 to 2."""
    alone, together = most_moving_rate(1), most_moving_rate(n)
    for descent in (1.0, 0.99, 0.5, 0.0, -0.5, -0.99):
        steps = np.diag([descent] * n + [1.0])
        for share in (0.01, 0.5, 0.99):
            assert radius(in_turn(n, share * alone, descent)) <= 1 + 1e-12
            assert radius(star(n, share * together) @ steps) <= 1 + 1e-12
    assert radius(in_turn(n, 1.02 * alone, 0.999)) > 1.005
    assert radius(star(n, 1.02 * together) @ np.diag([0.999] * n + [1.0])) > 1.005


@pytest.mark.mpi(min_size=2)
def test_async_workers_do_not_wait_for_each_other_and_no_meeting_is_lost(comm):
    counted = CountedComm(comm)
    strategy, whole = prepared(counted, averaging="elastic_async:0.5", collective="auto", steps=40, average_every=1, slowdown="permanent:2", lr=1e-300)
    replicas = strategy.replicas
    replicas.replica[:] = comm.rank
    replicas.gather(0)
    mean = np.array([*comm.allgather(replicas.replica), replicas.shown]).mean(axis=0)
    whole.drive()
    after = np.array([*comm.allgather(replicas.replica), replicas.weights])
    np.testing.assert_allclose(after.mean(axis=0), mean, rtol=1e-9)  # a meeting that is lost or done twice would move it
    assert comm.allreduce(strategy.driver.wait_seconds) == 0.0
    whole.end(None)
    counted.free()


@pytest.mark.mpi
@pytest.mark.parametrize("name, n", [("mean", 12), ("elastic_async", 3)])
def test_what_rank_0_wants_travels_once_in_so_many_clocks_where_nobody_waits_for_all(comm, name, n, monkeypatch):
    begun, start = [], Votes.start
    monkeypatch.setattr(Votes, "start", lambda self: (begun.append(1), start(self)))
    run(comm, averaging=name, collective="auto" if name == "elastic_async" else "ring", average_every=4, steps=12, seconds=100.0)
    assert len(begun) == n


@pytest.mark.mpi
@pytest.mark.parametrize("way", [{}, {"collective": "gossip"}, {"averaging": "elastic"}, {"averaging": "elastic_async", "collective": "auto"}], ids=str)
def test_it_learns_and_ends_at_a_target_at_a_time_and_when_nothing_gets_better(comm, way):
    summary, _ = run(comm, target="0.5", steps=0, epochs=60, **way)
    assert summary["test_accuracy"] > 0.4 and summary["clocks"] < 60 * 32
    summary, _ = run(comm, seconds=0.3, steps=0, **way)
    assert summary["clocks"] > 1 and summary["seconds"] < 5
    summary, values = run(comm, validate=0.1, patience=1, steps=0, epochs=40, lr=0.3, batch=400, **way)
    assert summary["epochs"] < 40 and summary["best_epoch"] < summary["epochs"] and summary["best_val_loss"] < 2
    assert len(set(comm.allgather(values.tobytes()))) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["mean", "elastic", "gossip"])
def test_bytes_are_the_formula_of_each_meeting_and_of_the_mean_that_is_saved(comm, name):
    """A centre needs no mean."""
    for every, n_meetings, n_sums in ((1, 12, 0), (3, 4, 0), (8, 1, 1)):
        counted = CountedComm(comm)
        of = {"collective" if name == "gossip" else "averaging": name}
        strategy, whole = prepared(counted, average_every=every, steps=12, hold_out=0.0, **of)
        whole.drive()
        sums, meets = (strategy.collective, strategy.mixing or strategy.collective)
        once, mixed = (moved([r for half in of.rounds(comm.rank, comm.size, strategy.net.n_params)[:2] for r in half]) for of in (sums, meets))
        n_sums = {"elastic": 0, "gossip": 1}.get(name, n_sums)
        rest = counted.nbytes_sent - whole.sent_before[0] - 8 * (once * n_sums + mixed * n_meetings)
        assert 0 <= rest < 10_000  # what is reported to rank 0
        whole.end(None)
        counted.free()


@pytest.mark.mpi
@pytest.mark.parametrize("way", [{}, {"collective": "gossip"}, {"averaging": "elastic"}], ids=str)
def test_a_saved_run_goes_on_to_the_bits_of_one_that_was_not_and_from_the_mean_on_fewer_ranks(comm, mpi_tmp_path, way):
    options = {"optimizer": "adam", "lr": 0.01, "steps": 20, "deterministic": True, "out": str(mpi_tmp_path / "whole")} | way
    whole, _ = run(comm, write=True, **options)
    run(comm, write=True, **options | {"steps": 14, "checkpoint_every": 7, "out": str(mpi_tmp_path / "cut")})
    comm.Barrier()
    same, _ = run(comm, resumed(mpi_tmp_path / "cut", {"steps": 20, "out": str(mpi_tmp_path / "same")}), write=True)
    assert same["model_sha256"] == whole["model_sha256"]
    with pytest.raises(UserError, match="has 'averaging', whose workers keep other state"):
        resumed(mpi_tmp_path / "cut", {"strategy": "data_parallel"})
    part = comm.Split(comm.rank > 0, comm.rank)
    if comm.rank == 0:
        fewer = Run(resumed(mpi_tmp_path / "cut", {"steps": 20, "out": str(mpi_tmp_path / "alone")}), CountedComm(part), quiet=True, write=True, brief=True)
        replica = fewer.strategy.replicas.replica.copy()
        if "averaging" not in way:
            np.testing.assert_allclose(replica, fewer.strategy.weights, rtol=1e-9, atol=1e-12)
        fewer.drive()
        assert fewer.end(None)["clocks"] == 20
        rows = [json.loads(line)["clock"] for line in (mpi_tmp_path / "same" / "metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(20))
    part.Free()


@pytest.mark.mpi
def test_a_centre_in_shared_memory_is_saved_with_its_replica(comm, mpi_tmp_path):
    """One rank alone repeats, since nobody comes between."""
    part, found = comm.Split(comm.rank, 0), {}
    if comm.rank == 0:
        options = {"averaging": "elastic_async", "collective": "auto", "steps": 20, "out": str(mpi_tmp_path / "whole")}
        whole, _ = run(part, write=True, **options)
        run(part, write=True, **options | {"steps": 14, "checkpoint_every": 7, "out": str(mpi_tmp_path / "cut")})
        same, _ = run(part, resumed(mpi_tmp_path / "cut", {"steps": 20, "out": str(mpi_tmp_path / "same")}), write=True)
        found = {whole["model_sha256"], same["model_sha256"]}
    part.Free()
    assert comm.rank or len(found) == 1


@pytest.mark.mpi
def test_two_runs_have_the_same_bits_where_no_timing_decides(comm):
    for way in ({}, {"collective": "gossip"}, {"averaging": "elastic"}):
        first, second = (run(comm, deterministic=True, **way)[0]["model_sha256"] for _ in range(2))
        assert first == second
    with pytest.raises(UserError, match="elastic_async cannot repeat"):
        run(comm, deterministic=True, averaging="elastic_async", collective="auto")
    if comm.size > 1:
        with pytest.raises(UserError, match="--collective auto chooses by timing"):
            run(comm, deterministic=True, collective="auto")


@pytest.mark.mpi
@pytest.mark.parametrize(
    "changes, says",
    [
        ({"bucket": 99}, "--bucket 99: does nothing under --strategy averaging"),
        ({"sync": "asp"}, "--sync asp: does nothing under --strategy averaging"),
        ({"averaging": "elastc"}, "did you mean 'elastic'"),
        ({"averaging": "mean:2"}, "mean takes no argument"),
        ({"averaging": "elastic:x"}, "must be a number above 0 and below"),
        ({"averaging": "elastic_async:1", "collective": "auto"}, "must be a number above 0 and below 1,"),
        ({"averaging": "elastic", "collective": "gossip"}, "needs a sum over all ranks"),
        ({"averaging": "elastic_async"}, "--collective ring: does nothing under --averaging elastic_async"),
        ({"collective": "ordered:32"}, "ordered:32: blocks are of a batch's samples"),
        ({"tune": False}, "--no-tune: does nothing under --strategy averaging"),
        ({"average_every": 0}, "--average-every 0: is below 1"),
        ({"averaging": "elastic:0.2", "average_every": 9}, "--average-every 9: in a run of 8 clocks the centre of --averaging elastic:0.2"),
        ({"collective": "gossip", "average_every": 9}, "--average-every 9: in a run of 8 clocks replicas would never mix by --collective gossip; give at most 8"),
        ({"strategy": "data_parallel"}, "--average-every 3: does nothing under --strategy data_parallel"),
        ({"strategy": "parameter_server", "collective": "auto"}, "--average-every 3: does nothing under --strategy parameter_server"),
    ],
)
def test_what_cannot_be_is_one_line(comm, changes, says):
    if comm.size == 1 and "ordered" in says:
        return  # nothing is summed on one rank, and the heading says so
    with pytest.raises(UserError) as error:
        run(comm, **changes)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.mpi
def test_replicas_that_mix_once_are_not_refused_nor_are_means_at_the_end_alone(comm):
    for changes in ({"collective": "gossip", "average_every": 8}, {"average_every": 9}):
        assert run(comm, **changes)[0]["clocks"] == 8


@pytest.mark.mpi(min_size=3)
def test_the_centre_in_shared_memory_is_refused_between_hosts_and_the_others_are_not(comm):
    with pytest.raises(UserError, match="they are on several hosts; use elastic"):
        run(comm, ranks_per_host=2, averaging="elastic_async", collective="auto")
    expected = run(comm, averaging="elastic")[1]
    np.testing.assert_allclose(run(comm, ranks_per_host=2, averaging="elastic", collective="auto")[1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.mpi
def test_distances_that_are_noted_stay_few_and_the_last_is_kept(comm, monkeypatch):
    monkeypatch.setattr(replicas, "MOST_NOTED", 6)
    found, _ = run(comm, average_every=1, steps=40)
    assert len(found["consensus_distances"]) <= 7 and found["consensus_distances"][-1][0] == 40
