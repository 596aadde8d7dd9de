"""The costs of a short run are those of its computes: neither a look at the test rows nor what was served meanwhile counts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mpidml import fitting
from mpidml.core.cost import CostModel
from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm
from mpidml.sim import parameter_server as ps
from mpidml.sync.asp import Asp
from tests.changed import changed


class Alone:
    rank, size = 0, 1


def summary(compute, serve, comm, take=None, messages=None, roles=None, polls=None, **others):
    """Return what a run of batches of 16 says of its ranks' seconds."""
    n = len(compute)
    return {
        "batch": 16, "clocks": 60, "epochs": 0.6, "polls_seconds": polls or [0.0] * n, "compute_seconds": compute,
        "serve_seconds": serve, "comm_seconds": comm, "take_seconds": take or [0.0] * n, "messages": messages or [0] * n,
        "roles": roles or [["server 0", "worker 0"]] * n, "evaluation_seconds": 0.0, "samples_per_second": 1.0,
    } | others  # fmt: skip


def fitted(monkeypatch, looked, served=1.0, **changes):
    """Fit to a run of 60 steps, of 0.1 s each with what it served, beside which rows were looked at for some seconds."""
    asked = []

    def train(job, comm, quiet, write, keep):
        asked.append(job)
        keep["step_seconds"] = [[0.5] * 5 + [0.1] * 55]
        return summary([8.0 + looked], [served], [0.6], polls=[served], evaluation_seconds=looked)

    monkeypatch.setattr(fitting, "train", train)
    return fitting.fit(Job(**changes), 16, Alone(), 3e-6), asked[0]


def test_a_look_is_no_compute(monkeypatch):
    none, _ = fitted(monkeypatch, 0.0)
    long, _ = fitted(monkeypatch, 100.0)
    assert none.cost == long.cost and len(none.cost.compute) == 55
    assert none.cost.mean_seconds == pytest.approx(0.1 * (8.0 - 1.0) / 8.0 + 0.01) and none.cost.apply == pytest.approx(1 / 60)
    assert (none.cost.latency, none.cost.samples, none.cost.source) == (3e-6, 16, "fitted")
    less, _ = fitted(monkeypatch, 0.0, served=2.0)
    assert less.cost.mean_seconds < none.cost.mean_seconds, "what was served is apart"


def test_the_run_waits_for_nobody_whatever_the_job(monkeypatch):
    _, job = fitted(monkeypatch, 0.0, strategy="data_parallel", collective="ring", sync="bsp", bucket=7, servers="2", slowdown="permanent:3", epochs=9, lr=0.3)
    assert (job.strategy, job.sync, job.servers, job.slowdown, job.collective, job.bucket) == ("parameter_server", "asp", "colocated", "", "auto", Job.bucket)
    assert (job.batch, job.steps, job.epochs, job.lr) == (16, fitting.FIT_CLOCKS, 0, 0.3)


COMPUTE, APPLY, TAKE, DRIVE = 0.01, 0.002, 0.0005, 0.001


def of_run(n_workers, n_servers, n=60):
    """Return the summary and the steps of a run of so many workers, `n_servers` apart or (0) one beside each, whose costs are those above."""
    pushes, answers = n * n_workers, n * (n_servers or n_workers)
    steps = [[COMPUTE] * n] * n_workers
    if not n_servers:
        each, messages = n * (COMPUTE + APPLY), pushes + answers
        found = [each] * n_workers, [n * APPLY] * n_workers, [n * DRIVE + messages * TAKE] * n_workers, [messages * TAKE] * n_workers, [messages] * n_workers
        return summary(*found, batch=16 * n_workers), steps
    of_servers = [pushes * APPLY / n_servers, pushes * APPLY / n_servers, pushes * TAKE, pushes * TAKE, pushes]
    of_workers = [n * COMPUTE, 0.0, n * DRIVE + answers * TAKE, answers * TAKE, answers]
    found = [[s] * n_servers + [w] * n_workers for s, w in zip(of_servers, of_workers, strict=True)]
    return summary(*found, roles=[["server 0"]] * n_servers + [["worker 0"]] * n_workers, batch=16 * n_workers), steps


def check_scale(module, n_servers):
    """Hold what a fit to two workers says of 40 to the law: servers beside workers take 40 gradients and answers each clock; one apart is busy throughout."""
    cost = module._cost(*of_run(2, n_servers), 16)
    n, clocks = 40, 100
    simulated = ps.simulate(ps.Plan(Asp(), n, clocks, replace(cost, latency=0.0), n_servers or n, colocated=not n_servers)).seconds
    law = COMPUTE + DRIVE + APPLY + 2 * n * TAKE if not n_servers else n * (APPLY / n_servers + TAKE)
    assert simulated / clocks == pytest.approx(law, rel=0.03)


@pytest.mark.parametrize("n_servers", [0, 1, 2])
def test_what_a_message_costs_is_fitted_so_many_workers_are_not_too_good(n_servers):
    check_scale(fitting, n_servers)
    for change in ("message = 0.0", "message = taken / max(n_taken, 1) / 2"):
        with pytest.raises(AssertionError):
            check_scale(changed(fitting, [("message = taken / n_taken if n_taken else 0.0", change)]), n_servers)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("servers", ["colocated", "1"])
def test_a_fit_knows_what_messages_take(comm, servers):
    counted = CountedComm(comm)
    found = fitting.fit(Job(data="digits", batch=64, hidden="8", backend="numpy", servers=servers), 16, counted)
    counted.free()
    if found is not None:
        assert 1e-7 < found.cost.message < 0.05 and found.cost.apply > 0


def test_a_short_batch_is_no_whole_one():
    """Of 22 rows batches have 16 and 6 in turn; of 8 rows each has all, and 16 would take twice as long."""
    whole, short = [0.1] * 60, [0.1, 0.04] * 30
    of = summary([6.0], [0.0], [0.0])
    assert set(fitting._cost(of, [whole], 16).compute) == {0.1}
    assert set(fitting._cost(of | {"epochs": 30.0}, [short], 16).compute) == {0.1}
    assert set(fitting._cost(of | {"epochs": 60.0, "batch": 8}, [whole], 16).compute) == {0.2}
    careless = changed(fitting, [(" and ((k + 1) % per_epoch or per_epoch == 1)]", "]")])
    assert set(careless._cost(of | {"epochs": 30.0}, [short], 16).compute) == {0.1, 0.04}


def test_a_short_batch_of_one_process_is_none_either(monkeypatch):
    metrics = [{"seconds": 1.4 * (i // 2) + i % 2, "samples": 22 * (i // 2) + 16 * (i % 2)} for i in range(fitting.ALONE_CLOCKS)]
    monkeypatch.setattr(fitting, "_run", lambda job, changes, comm: ({"batch": 16}, {"metrics": metrics}))
    monkeypatch.setattr(fitting, "CountedComm", lambda comm: SimpleNamespace(free=lambda: None))
    comm = SimpleNamespace(rank=0, watched=lambda *of: SimpleNamespace(Free=lambda: None), mpi=SimpleNamespace(Split=None), Barrier=lambda: None)
    compute = fitting.fit_alone(Job(batch=16), comm).compute
    assert len(compute) > 10 and compute == pytest.approx((1.0,) * len(compute))


def test_nothing_ends_a_fit_before_its_clocks(monkeypatch):
    """A target of the job that the first epochs reach, say."""
    _, job = fitted(monkeypatch, 0.0, target="0.1", validate=0.1, patience=3, seconds=0.5, checkpoint_every=4)
    assert (job.target, job.patience, job.seconds, job.checkpoint_every, job.steps) == ("", 0, 0.0, 0, fitting.FIT_CLOCKS)


@pytest.mark.mpi
def test_one_process_is_measured_at_the_whole_batch_by_rank_0_alone(comm, monkeypatch):
    asked, counted = [], CountedComm(comm)

    def train(job, ranks, quiet, write, keep):
        asked.append((ranks.size, job.batch, job.servers, job.sync))
        keep["metrics"] = [{"seconds": 3.0 * (i + 1), "samples": job.batch * (i + 1)} for i in range(job.steps)]
        return {"batch": job.batch}

    monkeypatch.setattr(fitting, "train", train)
    found = fitting.fit_alone(Job(batch=2 * fitting.MOST_SAMPLES, sync="ssp:3", servers="1"), counted)
    counted.free()
    assert asked == [(1, fitting.MOST_SAMPLES, "colocated", "asp")] * (comm.rank == 0)
    assert (found is None) == (comm.rank > 0)
    if found is not None:
        assert set(found.compute) == {6.0}, "twice the samples that were measured"


def test_a_step_has_its_overhead_once_where_one_process_is_measured():
    """A step takes 1 s and 0.1 s for each share of 4."""
    share, whole = CostModel((1.1,), latency=0.1, message=0.2, source="fitted"), CostModel((1.4,), source="fitted")
    one = fitting.of_one_process(share, 4, whole)
    assert (one.compute, one.latency, one.message) == ((1.4,), 0.0, 0.0)
    assumed = fitting.of_one_process(share, 4, None)
    assert assumed.mean_seconds == pytest.approx(4.4), "without a measurement it counts four times"
    assert (assumed.latency, assumed.message) == (0.0, 0.0)


def steps(*times, jitter=0.02, n=60):
    """Return the seconds of steps of workers that take so many times 0.1 s, the first ones longer still."""
    draws = np.random.default_rng(3).exponential(1.0, (len(times), n))
    seconds = 0.1 * (1 - jitter + jitter * draws) * np.array(times)[:, None]
    seconds[:, :5] *= 5
    return seconds.tolist()


class Several:
    """Two ranks, of which this is the first."""

    rank, size, mpi = 0, 2, None

    def __init__(self, one_host=True):
        self.one_host, self.host_rank_of = one_host, [0, 1 if one_host else -1]

    def bcast(self, value):
        return value


def run_of(step_seconds):
    """Return what trains: a run with such steps, in which nothing was served, looked at or driven."""

    def train(job, ranks, quiet, write, keep):
        keep["step_seconds"] = step_seconds
        return summary([sum(map(sum, step_seconds))], [0.0], [0.0], batch=16 * len(step_seconds))

    return train


def modelled(step_seconds, module=fitting, comm=None):
    """Return the costs that are fitted to a run with such steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", run_of(step_seconds))
        patch.setattr(module, "pingpong", lambda mpi, partner: (1e-5, 2e9))
        return module.fit(Job(), 16, comm or Several()).cost


def check_speeds(cost):
    """Hold the model of a run of two whose worker 1 takes 3 times to: so does each odd worker, always, and the others jitter little."""
    seconds = cost.seconds(0, 100)
    drawn = np.array([[seconds.of(w, s) for s in range(50)] for w in range(100)])
    assert drawn[1::2].mean() == pytest.approx(3 * drawn[::2].mean(), rel=0.03)
    assert drawn[::2].mean() == pytest.approx(0.1, rel=0.03) and cost.mean_seconds == pytest.approx(0.2, rel=0.03)
    spread = drawn.std(axis=1) / drawn.mean(axis=1)
    assert spread.max() < 0.1, f"a worker jitters by {spread.max():.0%}"


def test_a_worker_that_is_slow_for_good_is_slow_in_the_model_and_the_others_jitter_little():
    cost = modelled(steps(1, 3))
    check_speeds(cost)
    assert cost.slow(1) == "" and cost.mean_of(1) == pytest.approx(0.1, rel=0.03), "none of the simulated ones is slow"
    assert cost.slow(100) == (
        f"of 2 measured workers, worker 1 took {cost.slowness[1]:.2f} times as long throughout: simulated worker w is as slow as measured worker "
        "w mod 2, so are 50 of 100; for workers that are alike, fit without slow ones"
    )
    pooled = changed(fitting, [("slow = slowness(seconds)", "slow = ()")])
    with pytest.raises(AssertionError):
        check_speeds(modelled(steps(1, 3), pooled))


def test_workers_that_only_jitter_are_pooled():
    noisy = modelled(steps(1, 1, 1, 1, jitter=1.0))
    assert noisy.slowness == () and len(noisy.compute) == 4 * 55 and noisy.slow(100) == ""
    several = modelled(steps(1, 3, 1, 2))
    assert several.slowness == pytest.approx((1, 3, 1, 2), rel=0.03) and len(several.compute) == 2 * 55


def by_turns(n_workers=4, n=60, length=5):
    """Return steps of workers of which one at a time is 3 times slower."""
    return [[0.3 if k // length % n_workers == w else 0.1 for k in range(n)] for w in range(n_workers)]


CHANCE = {
    "jitter": (np.random.default_rng(3).exponential(1.0, (4, 60)) + 1.0).tolist(),
    "less than a fifth": (np.ones((4, 60)) * [[1.0], [1.0], [1.15], [1.0]]).tolist(),
    "one long step": [[1.0] * 60, [1.0] * 40 + [60.0] + [1.0] * 19],
    "by turns": by_turns(),
    "half of the run": [[1.0] * 60, [1.0] * 30 + [3.0] * 30],
    "one worker": [[1.0] * 60],
    "a short run": [[1.0, 1.1], [3.0, 3.3]],
}


@pytest.mark.parametrize("name", CHANCE)
def test_what_comes_and_goes_makes_no_worker_slow(name):
    assert fitting.slowness(CHANCE[name]) == ()


@pytest.mark.parametrize(("name", "change"), [("less than a fifth", ("> SLOWER *", "> 1 *")), ("half of the run", ("return lasts and", "return"))])
def test_a_rule_that_lacks_a_part_takes_chance_for_slowness(name, change):
    assert changed(fitting, [change]).slowness(CHANCE[name])


def test_without_the_spread_jitter_would_be_slowness():
    """Of many short runs of like workers, which jitter by all of a step."""
    draws = np.random.default_rng(4).exponential(1.0, (400, 2, 12))
    assert not any(fitting.slowness(of.tolist()) for of in draws)
    loose = changed(fitting, [("SLOWER, SURE = 1.2, 4.0", "SLOWER, SURE = 1.2, 0.0")])
    assert sum(bool(loose.slowness(of.tolist())) for of in draws) > 20


def test_a_link_is_what_is_between_hosts_and_inside_one_there_is_none():
    assert modelled(steps(1, 1)).bytes_per_second == 0.0
    across = modelled(steps(1, 1), comm=Several(one_host=False))
    assert (across.latency, across.bytes_per_second) == (1e-5, 2e9)
    wrong = changed(fitting, [("rate *= not comm.one_host", "pass")])
    assert modelled(steps(1, 1), wrong).bytes_per_second, "the memory of a host taken for a link"


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("per_host", [0, 1])
def test_the_link_of_a_fit_is_measured_between_hosts(comm, monkeypatch, per_host):
    counted, partners, measured = CountedComm(comm, per_host), [], fitting.pingpong
    one_host = counted.one_host
    monkeypatch.setattr(fitting, "train", run_of(steps(*[1] * comm.size)))
    monkeypatch.setattr(fitting, "pingpong", lambda mpi, partner: (partners.append(partner), measured(mpi, partner))[1])
    found = fitting.fit(Job(), 16, counted)
    counted.free()
    assert partners == [comm.size - 1 if one_host else 1] and one_host == (per_host == 0)
    assert (found is None) == (comm.rank > 0)
    if found is not None:
        assert found.cost.latency > 0 and (found.cost.bytes_per_second > 0) == (not one_host)
