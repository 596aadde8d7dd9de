"""The costs of a short run are those of its computes: neither a look at the test rows nor what was served meanwhile counts."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml import fitting
from mpidml.core.cost import CostModel
from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm


class Alone:
    rank, size = 0, 1


def fitted(monkeypatch, looked, served=1.0, **changes):
    """Fit to a run of 60 steps, of 0.1 s each with what it served, beside which rows were looked at for some seconds."""
    asked = []

    def train(job, comm, quiet, write, keep):
        asked.append(job)
        keep["step_seconds"] = [[0.5] * 5 + [0.1] * 55]
        return {
            "compute_seconds": [8.0 + looked], "serve_seconds": [served], "comm_seconds": [0.6], "evaluation_seconds": looked, "samples_per_second": 1.0,
        }  # fmt: skip

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


@pytest.mark.mpi
def test_one_process_is_measured_at_the_whole_batch_by_rank_0_alone(comm, monkeypatch):
    asked, counted = [], CountedComm(comm)

    def train(job, ranks, quiet, write, keep):
        asked.append((ranks.size, job.batch, job.servers, job.sync))
        keep["metrics"] = [{"seconds": 3.0 * (i + 1)} for i in range(job.steps)]
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


def test_a_rank_that_is_slow_for_good_is_named_and_chance_is_not():
    random = np.random.default_rng(3)
    steps = random.exponential(1.0, (4, 55)) + 1.0
    assert fitting.slow_rank(steps.tolist(), 0) == "", "jitter"
    slow = steps * np.array([[1.0], [1.0], [1.6], [1.0]])
    said = fitting.slow_rank(slow.tolist(), 1)
    assert said.startswith("rank 3 was slow throughout") and "--slowdown permanent:1." in said and "takes all workers alike" in said
    assert fitting.slow_rank((np.ones((4, 55)) * [[1.0], [1.0], [1.1], [1.0]]).tolist(), 0) == "", "less than a fifth"
    once = np.ones((4, 55))
    once[2, 7] = 40.0
    assert fitting.slow_rank(once.tolist(), 0) == "", "one long step"
    assert fitting.slow_rank([[1.0] * 55], 0) == ""


def test_without_the_spread_one_long_step_would_be_a_slow_rank(monkeypatch):
    monkeypatch.setattr(fitting, "SURE", 0.0)
    once = np.ones((4, 55))
    once[2, 7] = 40.0
    assert "rank 2" in fitting.slow_rank(once.tolist(), 0)
