"""Hold every file of mpidml/sync to what it declares in whole runs: 20 seeded straggler patterns on virtual clocks, and the same roles on MPI."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.sim import virtual
from mpidml.sync.asp import Asp
from tests.scenarios import Scenario, misses, run_on_mpi, sums_up

NAMES = plugins.names("mpidml.sync")
N_WORKERS, N_CLOCKS = 4, 40
each = pytest.mark.parametrize("name", NAMES)


def pattern(seed):
    """Return seconds(worker, clock): by turns jitter, a slot of slowness that goes round, a worker slow for good, one long pause."""
    kind, random_of = seed % 4, lambda worker, clock: random.Random(seed * 100_003 + worker * 1009 + clock)
    factor, victim = 2 + seed, seed % N_WORKERS

    def seconds(worker, clock):
        draw = random_of(worker, clock)
        if kind == 0:
            return draw.expovariate(1.0)
        slow = (clock // 7 % N_WORKERS == worker, worker == victim, worker == victim and clock == 11)[kind - 1]
        return draw.uniform(0.5, 1.5) * (factor if slow else 1)

    return seconds


def lead(scenario):
    """Return the largest staleness of a read as its worker was told: in clocks, or where a gate stands in executions within a clock."""
    return max(turn.staleness for task in scenario.tasks.values() for turn in task.turns)


def judged(policy, seed, repeat=False, declared=None):
    """Run one pattern; return the misses by values alone, and the largest lead."""
    scenario = Scenario(policy, N_WORKERS, 2, N_CLOCKS, repeat=repeat, reads=("fresh", "cached", "eager")[seed % 3])
    seconds, late = pattern(seed), random.Random(seed)
    first = scenario.worker_roles[0]
    virtual.run(scenario.roles(), lambda role, clock, now: seconds(role - first, clock), lambda a, b, n: late.expovariate(20), in_order=seed % 2 == 0)
    bound = policy.bound if declared is None else declared
    finals = [task.final for task in scenario.tasks.values()]
    missed = misses(scenario, scenario.seen(), bound) + ["the final values do not sum up"] * (not all(sums_up(scenario, f, scenario.seen()) for f in finals))
    return missed, lead(scenario), bound


@each
@pytest.mark.parametrize("seed", range(20))
def test_a_run_ends_and_no_read_is_staler_than_declared_whatever_the_stragglers(name, seed):
    policy = plugins.make("mpidml.sync", name)
    for repeat in {False, policy.repeatable}:
        missed, largest, bound = judged(policy, seed, repeat)  # a deadlock ends the virtual run with an error
        assert missed == []
        assert bound is None or largest <= bound


def test_a_policy_that_declares_a_bound_that_it_does_not_keep_is_caught():
    found = [judged(Asp(), seed, declared=2) for seed in range(20)]
    assert any(missed for missed, _, _ in found) and any(largest > 2 for _, largest, _ in found)


@pytest.mark.mpi
@each
def test_both_drivers_agree(comm, name):
    """On MPI the same judge finds nothing; where the policy repeats, each read shows the bits that it shows on virtual clocks."""
    policy = plugins.make("mpidml.sync", name)
    seconds = pattern(1)
    on_mpi = Scenario(
        policy, N_WORKERS, 2, N_CLOCKS, repeat=policy.repeatable, on_compute=lambda worker, clock: time.sleep(2e-4 * min(seconds(worker, clock), 5))
    )
    seen = run_on_mpi(on_mpi, comm)
    assert misses(on_mpi, seen, policy.bound) == []
    on_clocks = Scenario(policy, N_WORKERS, 2, N_CLOCKS, repeat=policy.repeatable)
    virtual.run(on_clocks.roles(), lambda role, clock, now: seconds(role - on_clocks.worker_roles[0], clock))
    assert policy.gate_at == "push" or len(seen) == len(on_clocks.seen()) == N_WORKERS * N_CLOCKS  # a quorum skips some
    if policy.repeatable:
        order = lambda s: (s.worker, s.clock)
        for a, b in zip(sorted(seen, key=order), sorted(on_clocks.seen(), key=order), strict=True):
            assert a.version == b.version and np.array_equal(a.values, b.values)
