"""What a budget has kept back when the time is over still counts: it is sent, and the run says how long that took."""

from __future__ import annotations

import pytest

from mpidml.core.job import Job
from mpidml.ps.managed import ManagedClient
from mpidml.strategies.base import train

BUDGET = 1e5
JOB = Job(hidden=(40,), dtype="float64", backend="numpy", sync="ssp:20", seconds=0.3, budget=BUDGET, wait_limit=20.0)
WEIGHTS_NBYTES = 8 * (240 * 40 + 40 + 40 * 10 + 10)


def test_the_drain_after_the_last_clock_is_told_and_is_no_longer_than_one_copy_takes(capsys):
    found = train(JOB, write=False)
    assert 0.1 < found["drain_seconds"] < 1.2 * WEIGHTS_NBYTES / BUDGET
    assert found["wall_seconds"] > found["seconds"] + 0.9 * found["drain_seconds"], "it is no part of the time that was asked for"
    assert f"the last updates took {found['drain_seconds']:.2f} s more to go out within the budget; they count" in capsys.readouterr().out


def test_a_run_without_a_budget_or_with_a_wide_one_drains_nothing(capsys):
    for budget in ("0", "1e12"):
        assert train(JOB.with_values({"budget": budget, "seconds": 0.0, "steps": 5}, "test"), write=False)["drain_seconds"] < 0.1
    assert "the last updates" not in capsys.readouterr().out


def test_the_check_catches_a_client_that_counts_no_drain(monkeypatch):
    monkeypatch.setattr(ManagedClient, "drain_seconds", property(lambda self: 0.0, lambda self, seconds: None), raising=False)
    with pytest.raises(AssertionError):
        assert train(JOB, quiet=True, write=False)["drain_seconds"] > 0.1
