"""What another policy would have done: the arithmetic of the recorded seconds, and nothing where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.core.job import Job
from mpidml.sim import what_if as what_if_module
from mpidml.sim.what_if import BUDGETED, OTHERS, sentence, stretches, told, what_if
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
    assert told(budgeted, seconds, 50) == {"what_if": {}, "what_if_sentence": BUDGETED}
    assert told(Job(sync="ssp:3"), seconds, 50)["what_if"]["ssp:3"] == 1.0
    nothing = {"what_if": {}, "what_if_sentence": ""}
    for job, of in ((budgeted, [[1.0] * 50]), (Job(), [[1.0] * 5] * 2), (Job(strategy="data_parallel"), seconds)):
        assert told(job, of, 50) == nothing, "where it would have said nothing, there is no why"
    assert changed(what_if_module, [("if job.budget:", "if False:")]).told(budgeted, seconds, 50)["what_if"]


def by_turns(n_clocks, slow_from):
    """Return the seconds of four workers: alike, and from a clock on each in turn slow for 5 clocks."""
    seconds = np.random.default_rng(8).uniform(0.9, 1.1, (4, n_clocks))
    for clock in range(slow_from, n_clocks):
        seconds[clock // 5 % 4, clock] *= 4
    return seconds


def test_a_long_run_is_simulated_from_stretches_of_all_of_it(monkeypatch):
    """What happens late in a run counts as what happens early: near the simulation of all clocks, forwards and backwards."""
    seconds = by_turns(3000, 1000)
    looked_at = ("ssp:1", "ssp:3", "ssp:10", "asp")
    for run in (seconds, seconds[:, ::-1]):
        part, first = ratios("bsp", run.tolist()), ratios("bsp", run[:, :750].tolist())
        with monkeypatch.context() as patch:
            patch.setattr(what_if_module, "MOST_STEPS", 10**9)
            whole = ratios("bsp", run.tolist())
        assert [part[p] for p in looked_at] == pytest.approx([whole[p] for p in looked_at], rel=0.08)
        assert max(abs(first[p] / whole[p] - 1) for p in looked_at) > 0.15, "the first clocks alone tell another story"


@pytest.mark.parametrize(("n", "n_clocks"), [(2, 5000), (4, 751), (4, 3000), (7, 20_000), (100, 400), (256, 60)])
def test_the_stretches_are_consecutive_clocks_and_the_same_for_each_worker(n, n_clocks):
    clocks = np.arange(1.0, n_clocks + 1)
    found = stretches([(clocks + 1e6 * w).tolist() for w in range(n)])
    most = max(3000 // n, 10)
    assert 0.9 * most - 1 <= len(found[0]) <= most or n_clocks <= most
    assert all(np.array_equal(np.array(of) - 1e6 * w, found[0]) for w, of in enumerate(found))
    jumps = np.flatnonzero(np.diff(found[0]) != 1)
    assert (np.diff(found[0]) > 0).all() and (np.diff([-1, *jumps, len(found[0]) - 1]) >= 10).all()
    if n < 50:
        assert max(np.diff([0, *found[0], n_clocks])) < 2 / 15 * n_clocks, "no part of the run is left out"


def test_workers_that_did_unlike_many_clocks_are_looked_at_in_the_same_seconds():
    fast, slow = [1.0] * 2000 + [3.0] * 1000, [3.0] * 667 + [1.0] * 3000
    found = stretches([fast, slow])
    assert sum(found[0]) == pytest.approx(sum(found[1]), rel=0.05)
    assert found[0].count(1.0) == pytest.approx(3 * found[1].count(3.0), rel=0.05), "at the times when one was fast the other was slow"


def test_the_sentence_says_which_share_of_the_clocks_it_is_from():
    said = told(Job(sync="bsp"), by_turns(3000, 1000).tolist(), 3000)["what_if_sentence"]
    assert "(simulated from 25.0% of them, in stretches spread evenly): ssp:1 " in said
    assert "(simulated from 5.0% of them" in told(Job(sync="bsp"), by_turns(3000, 1000).tolist(), 15_000)["what_if_sentence"], "of what the run did, not of what is kept"
    assert "(simulated): " in told(Job(sync="bsp"), by_turns(700, 100).tolist(), 700)["what_if_sentence"]
