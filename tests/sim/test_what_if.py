"""What another policy would have done: the arithmetic of the recorded seconds, and nothing where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.core.job import Job
from mpidml.sim import what_if as what_if_module
from mpidml.sim.what_if import BUDGETED, OTHERS, sentence, told, what_if
from tests.changed import changed


def ratios(sync, seconds):
    return dict(what_if(sync, seconds, latency=0.0))


def test_against_a_permanent_straggler_only_what_has_no_bound_or_drops_it_gains():
    seconds = [[2.0] * 60, *([1.0] * 60 for _ in range(3))]
    found = ratios("bsp", seconds)
    assert found["bsp"] == 1.0 and set(found) == {"bsp", *OTHERS}
    assert [found[p] for p in ("ssp:1", "ssp:3")] == pytest.approx([1, 1], abs=0.06)
    assert found["asp"] == pytest.approx((3 + 0.5) / (4 * 0.5), rel=0.05)
    assert found["adaptive"] == pytest.approx(found["asp"], rel=0.1), "the fast ones execute twice"
    assert found["quorum"] == pytest.approx(2 * 3 / 4, rel=0.05), "three gradients a clock, twice the clocks"


def test_jitter_is_hidden_the_more_the_staler_and_the_own_policy_is_the_measure():
    seconds = np.random.default_rng(0).exponential(1.0, (4, 400)).tolist()
    by_bsp, by_ssp = ratios("bsp", seconds), ratios("ssp:3", seconds)
    assert 1 < by_bsp["ssp:1"] < by_bsp["ssp:3"] < by_bsp["ssp:10"] <= 1.02 * by_bsp["asp"]
    assert by_bsp["ssp:3"] == pytest.approx(1.75, rel=0.08)
    assert by_ssp["bsp"] == pytest.approx(1 / by_bsp["ssp:3"], rel=0.03)


@pytest.mark.parametrize("seconds", [[[1.0] * 50], [[1.0] * 50, [1.0] * 3], [[0.0] * 50, [1.0] * 50]])
def test_one_worker_or_too_short_a_run_tells_nothing(seconds):
    assert what_if("bsp", seconds) == []


def test_the_sentence_names_each_policy_with_its_ratio():
    assert sentence([("bsp", 1.0), ("asp", 1.234)]).endswith("(simulated): asp 1.23")


def test_under_a_budget_nothing_is_simulated_and_the_run_says_why():
    """Sending takes the time there: of that the seconds of computes tell nothing, so that every ratio would be wrong."""
    seconds, budgeted = [[1.0] * 50] * 2, Job(sync="ssp:3", budget=2e5)
    assert told(budgeted, seconds) == {"what_if": {}, "what_if_sentence": BUDGETED}
    assert told(Job(sync="ssp:3"), seconds)["what_if"]["ssp:3"] == 1.0
    nothing = {"what_if": {}, "what_if_sentence": ""}
    for job, of in ((budgeted, [[1.0] * 50]), (Job(), [[1.0] * 5] * 2), (Job(strategy="data_parallel"), seconds)):
        assert told(job, of) == nothing, "where it would have said nothing, there is no why"
    assert changed(what_if_module, [("if job.budget:", "if False:")]).told(budgeted, seconds)["what_if"]
