"""What a simulation notes is bounded and lies evenly over the run, of which nobody knows the length before."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.core.cost import CostModel
from mpidml.core.job import Job
from mpidml.sim import data_parallel, thinned
from mpidml.sim import parameter_server as ps
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sim.summary import of_job, sentence
from mpidml.sim.thinned import MOST_ROWS, Thinned
from mpidml.sync.base import make_policy
from tests.changed import changed

COST = CostModel((1.0,), 0.5)


def even(kept, n, n_workers):
    """Return whether notes 0 ... n - 1, of the workers in turn, are kept evenly over the run and over the workers."""
    where = np.histogram(kept, 10, (0, n))[0] / (len(kept) / 10)
    whose = np.histogram(np.array(kept) % n_workers, min(n_workers, 10), (0, n_workers))[0] / (len(kept) / min(n_workers, 10))
    return bool(np.abs(where - 1).max() < 0.1 and np.abs(whose - 1).max() < 0.25)


def kept_of(module, n):
    notes = module.Thinned()
    for i in range(n):
        notes.add((float(i),))
    assert notes.n == n
    return [int(row[0]) for row in notes.rows]


@pytest.mark.parametrize("n", [0, 1, MOST_ROWS])
def test_few_are_all_kept(n):
    assert kept_of(thinned, n) == list(range(n))


@pytest.mark.parametrize("n_workers", [1, 2, 3, 64, 400, 10_000])
def test_of_many_as_many_of_each_part_of_the_run_and_of_each_worker(n_workers):
    kept = kept_of(thinned, 120_001)
    assert MOST_ROWS / 2.1 < len(kept) <= MOST_ROWS and kept == sorted(kept) and even(kept, 120_001, n_workers)


def test_the_check_catches_those_that_keep_the_first_or_one_of_each_so_many():
    first = changed(thinned, [("if place < self.share:", "if self.n <= 1000:")])
    strided = changed(thinned, [("place = self.n * GOLDEN % 1", "place = int(f'{self.n:032b}'[::-1], 2) / 2**32")])  # every 2nd, 4th, 8th, ...
    assert not even(kept_of(first, 120_001), 120_001, 1)
    assert even(kept_of(strided, 120_001), 120_001, 1) and not even(kept_of(strided, 120_001), 120_001, 64)


def test_quotas_are_those_of_the_whole_run_and_what_is_left_out_is_said():
    plan = Plan(make_policy("adaptive"), 400, 40, COST)
    found = simulate(plan)
    at = [row[0] for row in found.quotas.rows]
    assert found.quotas.n > MOST_ROWS >= len(at) and at == sorted(at) and at[-1] > 0.97 * found.seconds
    assert len({row[1] for row in found.quotas.rows}) > 300
    summary = of_job(Job(sync="adaptive", batch=400), plan, found, 1.0)[0]
    assert f"has {len(at):,} of the {found.quotas.n:,} quotas that were set" in sentence("adaptive", summary)
    few = Plan(make_policy("adaptive"), 4, 12, COST)
    assert "quotas" not in sentence("adaptive", of_job(Job(sync="adaptive", batch=4), few, simulate(few), 1.0)[0])


@pytest.mark.parametrize("strategy", ["parameter_server", "data_parallel"])
@pytest.mark.parametrize("n_clocks", [500, 2000, 2001, 9000])
def test_rows_of_a_run_that_ends_by_time_are_bounded(strategy, n_clocks, monkeypatch):
    def run(plan):
        return simulate(plan) if strategy == "parameter_server" else data_parallel.simulate(plan, "ring")

    ends = Plan(make_policy("ssp:3"), 2, n_clocks, COST, int(strategy == "parameter_server"))
    plan = Plan(ends.policy, 2, 1 << 40, COST, ends.n_shards, seconds=run(ends).seconds)
    found = run(plan)
    rows = found.rows
    assert min(n_clocks, MOST_ROWS) / 2.1 < len(rows) <= MOST_ROWS + 1 and rows[-1][1] == found.n_done >= 2 * (n_clocks - 5)
    steps = np.diff([done for _, done, _ in rows[:-1]])
    assert steps.min() == steps.max() and rows[0][1] == steps[0], "evenly"
    for module in (ps, data_parallel):
        monkeypatch.setattr(module, "MOST_ROWS", 1 << 30)
    every = run(plan).rows
    assert found.seconds == every[-1][0] and len(every) > n_clocks - 5, "the broken variant: a row a clock"
    mean = [sum(stale * n for (_, _, stale), n in zip(of, np.diff([0, *(done for _, done, _ in of)]), strict=True)) / of[-1][1] for of in (rows, every)]
    assert mean[0] == pytest.approx(mean[1]), "each stands for what it has joined"


def test_notes_of_one_run_are_not_those_of_another():
    assert Thinned().rows == [] and simulate(Plan(make_policy("bsp"), 2, 3, COST)).quotas.n == 0
