"""Dynamic staleness: between its two bounds, and worth it by the times alone."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.core.clocks import TimedClocks
from mpidml.sim import virtual
from mpidml.sync.bsp import Bsp
from mpidml.sync.dssp import Dssp, more_clocks
from mpidml.sync.ssp import Ssp
from tests.scenarios import Scenario, misses
from tests.sim.test_staleness import draw, gain, simulated


def view(fast_seconds, slow_seconds, fast_clocks, slow_clocks):
    """Worker 0 ends a clock every `fast_seconds`, worker 1 every `slow_seconds`."""
    clocks = TimedClocks(range(2))
    ticks = [(fast_seconds * (c + 1), 0) for c in range(fast_clocks)] + [(slow_seconds * (c + 1), 1) for c in range(slow_clocks)]
    for now, worker in sorted(ticks):
        clocks.tick(worker, now)
    return clocks


@pytest.mark.parametrize(("fast", "slow"), [(1.0, 4.0), (1.0, 3.0), (1.0, 2.5), (0.3, 1.0)])
def test_it_stops_where_the_next_end_of_the_slowest_is_nearest(fast, slow):
    """Against a search over all ends of both: the paper's algorithm 2."""
    clocks = view(fast, slow, fast_clocks=int(2 * slow / fast), slow_clocks=1)
    clock = clocks.completed[0]
    gaps = [
        min(abs(clocks.last[0] + more * fast - (clocks.last[1] + k * slow)) for k in range(1, 50))
        for more in range(9)
    ]  # fmt: skip
    assert more_clocks(clock, 0, clocks, 8) == int(np.argmin(np.round(gaps, 9)))


def test_clocks_that_go_on_allow_at_once_what_their_times_allow():
    """Otherwise the fastest waits at the lower bound after each pause, until everybody has ended a clock."""
    before, policy = view(1.0, 4.0, 8, 2), Dssp(0, 8)
    for learnt, readable in ((before.learnt(), 10), ({}, 11)):
        clocks = TimedClocks(range(2))
        clocks.begin(10)
        clocks.know(learnt)
        clocks.start(20.0)
        clocks.completed[0] = clocks.highest = 11
        assert policy.oldest_readable(11, 0, clocks) == readable


def test_others_than_the_fastest_wait_at_the_lower_bound():
    clocks = TimedClocks(range(3))
    for now, worker in enumerate([0, 1, 2, 0, 1, 2, 0, 0, 1, 0, 0, 1], 1):
        clocks.tick(worker, float(now))
    policy = Dssp(1, 8)
    assert list(clocks.completed) == [6, 4, 2]
    assert policy.oldest_readable(4, 1, clocks) == 3, "not the fastest: waits for clock 3"
    assert policy.oldest_readable(4, 1, None) == 3


@pytest.mark.parametrize("seed", range(6))
def test_reads_stay_between_the_bounds_and_use_the_room(seed):
    """A worker that is 2.5 times faster by turns goes beyond the lower bound, never beyond the upper."""
    scenario = Scenario(Dssp(1, 5), 2, 2, 60)
    rng = np.random.default_rng(seed)
    first = scenario.worker_roles[0]
    virtual.run(scenario.roles(), lambda role, clock, now: rng.uniform(0.9, 1.1) * (2.5 if clock // 10 % 2 == role - first else 1))
    assert misses(scenario, scenario.seen(), 5) == []
    staleness = max(s.clock - s.version for s in scenario.seen())
    assert 1 < staleness <= 5


def test_a_range_of_one_point_is_ssp():
    for slowness in ("exponential", "rotating"):
        seconds = draw(slowness, 3)[:, :200]
        assert np.allclose(simulated(Dssp(2, 2), seconds), simulated(Ssp(2), seconds))


def test_it_gains_between_its_two_bounds():
    seconds = draw("exponential", 4)[:, :600]
    base = simulated(Bsp(), seconds)
    least, dynamic, most = (gain(simulated(policy, seconds), base) for policy in (Ssp(1), Dssp(1, 8), Ssp(8)))
    assert least < dynamic < most


@pytest.mark.parametrize("origin", [0.0, 1e5])
def test_the_first_clock_counts_from_the_start_of_the_run_not_from_that_of_the_machine(origin):
    """A real clock begins anywhere; before the slowest has ended one clock nothing is known, so the fastest stays at the lower bound."""
    clocks = TimedClocks(range(2))
    clocks.start(origin)
    for k in range(1, 4):
        clocks.tick(0, origin + k)
    assert clocks.interval[0] == 1.0 and more_clocks(3, 0, clocks, 8) == 0
    clocks.tick(1, origin + 4.0)
    assert clocks.interval[1] == 4.0
