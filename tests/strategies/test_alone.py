"""One process alone reads what it has written: every policy trains as bsp does, and nothing is softened."""

from __future__ import annotations

import pytest

from mpidml.core import plugins
from mpidml.core.job import Job
from mpidml.ps.task import Turn
from mpidml.ps.worker import Worker
from mpidml.strategies.base import train

JOB = Job(hidden=(8,), backend="numpy", steps=30, wait_limit=20.0)


def trained(sync, **changes):
    return train(JOB.with_values({"sync": sync, **changes}, "test"), quiet=True, write=False)


@pytest.fixture(scope="module")
def bsp():
    return trained("bsp")["model_sha256"]


@pytest.mark.parametrize("sync", [*plugins.names("mpidml.sync"), "adaptive:4:32", "ssp:5"])
def test_every_policy_has_the_bits_of_bsp_and_no_read_is_stale(sync, bsp):
    found = trained(sync)
    assert found["model_sha256"] == bsp and found["staleness_histogram"] == {"0": 30 + 1}
    assert (found["rate_factor"], found["memory_factor"]) == (1.0, 1.0)


def test_the_bits_catch_a_worker_that_counts_its_own_clocks_as_missed(bsp, monkeypatch):
    def compute(self, turn, report):
        self.turn = Turn(*turn)
        return self.task.compute(self.turn, report)

    monkeypatch.setattr(Worker, "_compute", compute)
    assert trained("adaptive:4:32")["model_sha256"] != bsp


def test_the_opening_speaks_of_softening_only_where_there_is_some(capsys):
    for transport, told in (("auto", False), ("mpi", True)):
        job = JOB.with_values({"sync": "ssp:3", "transport": transport, "steps": 3}, "test")
        train(job, write=False)
        assert ("stale updates are softened" in capsys.readouterr().out) == told
