"""The costs of a short run are those of its computes: neither a look at the test rows nor what was served meanwhile counts."""

from __future__ import annotations

import pytest

from mpidml import fitting
from mpidml.core.job import Job


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
