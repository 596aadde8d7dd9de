"""The coordinator gives out every block once, to whoever asks, and ends a run so that nobody is left waiting."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidml.core.errors import WaitTimeout
from mpidml.core.role import GRANT, NEXT, Message, Send, Stop
from mpidml.ps.coordinator import WEIGHT_UNITS, Coordinator
from mpidml.sim import virtual
from mpidml.sync.adaptive import Adaptive
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from mpidml.sync.ssp import Ssp
from tests.scenarios import Scenario, misses


def asked(coordinator, worker, now=0.0):
    effects = list(coordinator.handle(now, coordinator.workers[worker], Message(NEXT, -1)))
    grants = [e.message for e in effects if isinstance(e, Send)]
    assert all(m.kind == GRANT for m in grants)
    return grants[0], any(isinstance(e, Stop) for e in effects)


def blocks(dynamic, order, n_workers=3, n_turns=4):
    coordinator = Coordinator(range(5, 5 + n_workers), n_turns, dynamic)
    given_out, left = {w: [] for w in range(n_workers)}, set()
    stopped = False
    for worker in [*order, *sorted(set(range(n_workers)) - set(order))] + [w for w in range(n_workers) for _ in range(n_turns * n_workers + 1)]:
        if worker in left:
            continue
        grant, stopped = asked(coordinator, worker)
        assert grant.hi == WEIGHT_UNITS and grant.ends
        if grant.lo < 0:
            left.add(worker)
        else:
            given_out[worker].append(grant.lo)
    assert stopped and len(left) == n_workers
    return given_out


@given(st.lists(st.integers(0, 2), max_size=30))
def test_every_block_is_given_out_once(order):
    for dynamic in (False, True):
        found = blocks(dynamic, order)
        assert sorted(b for of in found.values() for b in of) == list(range(12))
        if not dynamic:
            assert all(b % 3 == worker for worker, of in found.items() for b in of), "each worker has shares of its own"


def test_the_free_worker_gets_the_next_block_of_the_global_order():
    assert blocks(True, [2, 0, 2, 2, 1])[2][:3] == [0, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([Bsp(), Ssp(2), Asp(), Adaptive(1, 4)]), st.integers(1, 4), st.integers(0, 10**6), st.booleans(), st.floats(0.5, 30))
def test_a_stop_at_any_moment_ends_the_run_and_loses_no_update(policy, n_workers, seed, dynamic, until):
    draw = random.Random(seed)
    scenario = Scenario(policy, n_workers, 2, 40, dynamic=dynamic, coordinated=True)
    roles = scenario.roles()
    scenario.coordinator.over = lambda now: now >= until
    scenario.coordinator.level = not policy.gate_at and policy.bound is not None
    virtual.run(roles, lambda role, step, now: draw.expovariate(1), lambda a, b, n: draw.expovariate(10))
    assert misses(scenario, scenario.seen(), policy.bound) == []
    done = {s.row for s in scenario.seen()}
    assert all(set(task.final.nonzero()[0]) == done for task in scenario.tasks.values()), "the final values hold what was computed"
    if policy.bound == 0 and not dynamic:
        assert len({len(task.turns) for task in scenario.tasks.values()}) == 1, "under bsp all end with the same clock"


def test_a_slow_worker_gets_fewer_blocks():
    scenario = Scenario(Asp(), 2, 1, 50, dynamic=True)
    first = scenario.worker_roles[0]
    virtual.run(scenario.roles(), lambda role, step, now: 4.0 if role == first else 1.0, 1e-4)
    slow, fast = (len(task.turns) for task in scenario.tasks.values())
    assert slow + fast == 100 and fast == pytest.approx(4 * slow, abs=8)  # each holds one more block than it computes


@pytest.mark.parametrize("latency", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_what_is_asked_while_the_word_to_leave_is_on_its_way_is_ignored(n_workers, latency):
    """An adaptive worker computes what it was granted ahead, and reports it, after the coordinator has let it go."""
    for until in range(1, 25):
        draw = random.Random(until)
        scenario = Scenario(Adaptive(2, 6), n_workers, 1, 40, coordinated=True)
        roles = scenario.roles()
        scenario.coordinator.over = lambda now, until=until: now >= until
        virtual.run(roles, lambda role, step, now, draw=draw: draw.uniform(0.2, 2.0), latency)
        done = {s.row for s in scenario.seen()}
        assert all(set(task.final.nonzero()[0]) == done for task in scenario.tasks.values())


class Mute(Coordinator):
    def handle(self, now, source, message):
        return () if message.clock >= 2 else super().handle(now, source, message)


def test_a_worker_that_is_granted_nothing_says_so():
    scenario = Scenario(Asp(), 2, 1, 10, dynamic=True)
    roles = scenario.roles()
    roles[-1].__class__ = Mute
    with pytest.raises(WaitTimeout, match=r"worker \d waits for the coordinator's leave to start its clock, since \d+\.\d s"):
        virtual.run(roles, lambda role, step, now: 1.0)
