"""Backup workers: n gradients close a clock, later ones are dropped by all shards alike, and n of n is bsp bit by bit."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from mpidml.sim import virtual
from mpidml.sync.bsp import Bsp
from mpidml.sync.quorum import FirstGradients, Quorum
from tests.scenarios import Scenario, misses, sums_up


def jitter(seed, scenario):
    draw = random.Random(seed)
    return {"compute_seconds": lambda role, clock, now: draw.expovariate(1), "latency_seconds": lambda a, b, n: draw.expovariate(10)}


def counted(scenario, result):
    """Return (clock, worker) of each gradient that counted, and of each that was dropped."""
    kept, dropped = [], []
    for _, role, name, value in result.records:
        if name == "clock":
            (kept if value[2] else dropped).append((int(value[0]), role - scenario.worker_roles[0]))
    return kept, dropped


def check(scenario, seed=1):
    result = virtual.run(scenario.roles(), in_order=seed % 2 == 0, **jitter(seed, scenario))
    kept, dropped = counted(scenario, result)
    needed = scenario.policy.needed(scenario.n_workers)
    by_clock = Counter(clock for clock, _ in kept)
    assert all(by_clock[c] == needed for c in range(scenario.n_clocks)), "as many gradients a clock as it needs"
    assert len(kept) + len(dropped) <= scenario.n_workers * scenario.n_clocks
    assert all(sums_up(scenario, t.final, scenario.seen()) for t in scenario.tasks.values())
    assert all(t.final.sum() == len(kept) for t in scenario.tasks.values()), "what counts is applied once, what is dropped never"
    assert misses(scenario, scenario.seen(), 0) == []
    return kept, dropped


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("n", "n_workers"), [(0, 4), (2, 4), (1, 3), (0, 1), (3, 3)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_each_clock_counts_n_gradients_and_drops_the_rest(n, n_workers, dynamic, seed):
    scenario = Scenario(Quorum(n), n_workers, 2, 20, dynamic=dynamic)
    if not dynamic:
        _, dropped = check(scenario, seed)
        assert bool(dropped) == (scenario.policy.needed(n_workers) < n_workers)
    else:
        result = virtual.run(scenario.roles(), **jitter(seed, scenario))
        kept, dropped = counted(scenario, result)
        assert len(kept) + len(dropped) == n_workers * 20, "every block is computed once"
        assert misses(scenario, scenario.seen(), 0) == []


class TooMany(FirstGradients):
    """Closes a clock one gradient late."""

    def __init__(self, n_workers, needed):
        super().__init__(n_workers, needed + 1)


class AdmitsAll(FirstGradients):
    """Never finds a gradient late."""

    def ready(self, now, worker, clock, load):
        super().ready(now, worker, clock, load)
        self.answers[-1] = self.answers[-1]._replace(counts=True)


@pytest.mark.parametrize("broken", [TooMany, AdmitsAll])
def test_the_check_catches_a_gate_that_admits_others(broken):
    with pytest.raises((AssertionError, KeyError)):
        check(Scenario(Quorum(2), 4, 2, 20, gate=broken(4, 2)))


def test_a_quorum_of_all_is_bsp_bit_by_bit():
    def values(policy):
        scenario = Scenario(policy, 3, 2, 15)
        virtual.run(scenario.roles(), **jitter(3, scenario))
        return {(s.worker, s.clock): s.values.tobytes() for s in scenario.seen()}

    assert values(Quorum(3)) == values(Bsp())


def test_the_gradients_of_a_quorum_weigh_as_much_as_those_of_all():
    gate = Quorum(3).gate(4, True)
    gate.ready(0.0, 0, -1, 0.0)
    assert [start.weight for start in gate.starts(0.0)] == [4 / 3]


def test_a_permanent_straggler_costs_its_samples_and_no_time():
    """Its law: the time of n of the others. Under bsp the same job takes as long as the straggler."""

    def seconds(policy):
        scenario = Scenario(policy, 4, 1, 50)
        first = scenario.worker_roles[0]
        return virtual.run(scenario.roles(), lambda role, clock, now: 5.0 if role == first else 1.0, 1e-4).records[-1][0]

    assert seconds(Bsp()) == pytest.approx(250, rel=0.01)
    assert seconds(Quorum()) == pytest.approx(50, abs=5.5)


def test_more_gradients_than_workers_is_one_line():
    with pytest.raises(ValueError, match="a quorum of 5 gradients needs as many workers, there are 3"):
        Quorum(5).needed(3)
    assert Quorum().needed(1) == 1 and np.isclose(Quorum().gate(1, True).weight, 1)
