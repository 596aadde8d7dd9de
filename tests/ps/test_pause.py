"""A run that pauses and goes on, as often as it likes, loses no update and makes none twice; in repeat mode nothing shows that it has paused."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from mpidml.core.errors import WaitTimeout
from mpidml.core.position import Position, saved_at
from mpidml.ps.shard import Shard
from mpidml.ps.worker import Worker
from mpidml.sim import virtual
from mpidml.sync.adaptive import Adaptive
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from mpidml.sync.dssp import Dssp
from mpidml.sync.quorum import Quorum
from mpidml.sync.ssp import Ssp
from mpidml.sync.warmup import Warmup
from tests.scenarios import Scenario, misses, sums_up

N_CLOCKS = 24
POLICIES = [Bsp(), Ssp(0), Ssp(3), Asp(), Dssp(1, 4), Warmup(10, 2), Quorum(), Adaptive(1, 4)]


def run(scenario, every, seed=0, forget=lambda scenario, position: position):
    """Run to the end with a pause each `every` turns; return how often it paused."""
    draw = random.Random(seed)
    n, pauses = scenario.n_workers, 0
    while True:
        done = sum(scenario.position.turns) // n
        scenario.pause_at = following if every and (following := (done // every + 1) * every) < N_CLOCKS else 0
        roles = scenario.roles()
        virtual.run(roles, lambda role, step, now: draw.expovariate(1), lambda a, b, number: draw.expovariate(10))
        if not scenario.coordinator.pauses:
            return pauses
        pauses += 1
        clock = max(role.clocks.highest for role in roles if isinstance(role, Shard))
        scenario.position = forget(scenario, Position(clock, scenario.coordinator.turns_done()))


def blocks(scenario):
    """List the blocks that were computed, also those whose gradients were dropped."""
    return sorted(turn.block for task in scenario.tasks.values() for turn in task.turns)


def name(policy):
    return type(policy).__name__.lower() + str(policy.bound)


@pytest.mark.parametrize("every", [1, 5, 11])
@pytest.mark.parametrize(("policy", "dynamic"), [(p, d) for p in POLICIES for d in (False, True)], ids=str)
def test_pauses_lose_no_update_and_make_none_twice(policy, dynamic, every):
    scenario = Scenario(policy, 3, 2, N_CLOCKS, dynamic=dynamic, coordinated=True)
    pauses = run(scenario, every)
    assert pauses >= (N_CLOCKS - 1) // every // 2
    assert misses(scenario, scenario.seen(), policy.bound) == []
    if dynamic:
        assert blocks(scenario) == list(range(3 * N_CLOCKS))
    for task in scenario.tasks.values():
        if policy.gate_at == "push":  # the last clock before a pause may lack some of the gradients that it needs
            by_clock = Counter(s.clock for s in scenario.seen() if task.final[s.row])
            assert set(task.final) <= {0, 1} and max(by_clock.values()) == 2
            assert sum(n < 2 for n in by_clock.values()) <= pauses + 1
        else:
            assert sums_up(scenario, task.final, scenario.seen())


@pytest.mark.parametrize("step", [-1, 1])
def test_the_sum_catches_a_run_that_goes_on_a_turn_too_early_or_too_late(step):
    def off(scenario, position):
        return Position(position.clock, tuple(turns + step for turns in position.turns)) if position.clock == 5 else position

    scenario = Scenario(Ssp(2), 3, 2, N_CLOCKS, coordinated=True)
    run(scenario, 5, forget=off)
    assert not all(sums_up(scenario, task.final, scenario.seen()) for task in scenario.tasks.values())


def test_the_blocks_catch_a_line_that_goes_on_as_if_each_worker_had_had_as_many_as_the_one_with_the_most():
    def level(scenario, position):
        return Position(position.clock, (max(position.turns),) * 3)

    for forget, whole in ((lambda scenario, position: position, True), (level, False)):
        scenario = Scenario(Quorum(2), 3, 2, N_CLOCKS, dynamic=True)
        run(scenario, 5, forget=forget)
        assert (blocks(scenario) == list(range(3 * N_CLOCKS))) == whole


def ends_alone(late, role):
    """Stop where worker 0 is far behind the others, and go on without a coordinator: each worker counts its turns itself, some of which have none left."""
    scenario, draw = Scenario(Asp(), 3, 2, N_CLOCKS, coordinated=True, pause_at=late), random.Random(late)

    def go():
        roles = scenario.roles()
        slow = scenario.worker_roles.start
        virtual.run(roles, lambda role, step, now: draw.expovariate(0.02 if role == slow else 1), lambda a, b, number: draw.expovariate(10))
        return Position(max(role.clocks.highest for role in roles if isinstance(role, Shard)), scenario.coordinator.turns_done())

    scenario.position = go()
    assert min(scenario.position.turns) < N_CLOCKS == max(scenario.position.turns)
    make = scenario.role
    scenario.role = lambda number, buffers: role(make(number, buffers))
    scenario.coordinated, scenario.n_roles = False, scenario.worker_roles.stop
    go()
    return all(sums_up(scenario, task.final, scenario.seen()) for task in scenario.tasks.values())


@pytest.mark.parametrize("late", range(N_CLOCKS - 6, N_CLOCKS))
def test_workers_that_are_done_when_a_run_goes_on_leave_also_where_each_counts_its_own_turns(late):
    assert ends_alone(late, lambda role: role)


def test_the_sum_catches_one_that_does_a_turn_more_before_it_leaves():
    def more(role):
        if isinstance(role, Worker) and role.index == 1:
            role.n_clocks += 1
        return role

    assert not ends_alone(N_CLOCKS - 6, more)


def read(policy, every, seed, forget=lambda scenario, position: position):
    """Return what each read shows of the other workers: a table with an optimizer, as training has it, adds no own writes to an older version."""
    scenario = Scenario(policy, 3, 2, N_CLOCKS, repeat=True, coordinated=True)
    run(scenario, every, seed, forget)
    others = {w: np.arange(3 * N_CLOCKS) // N_CLOCKS != w for w in range(3)}
    return {(s.worker, s.step): (s.clock, s.version, s.values[others[s.worker]].tobytes()) for s in scenario.seen()}


REPEATABLE = [Bsp(), Ssp(1), Ssp(3), Warmup(10, 2)]


@pytest.mark.parametrize("every", [1, 5, 11])
@pytest.mark.parametrize("policy", REPEATABLE, ids=name)
def test_in_repeat_mode_every_read_is_that_of_a_run_without_pauses(policy, every):
    assert read(policy, every, seed=1) == read(policy, 0, seed=2)


def test_the_check_catches_older_versions_that_were_not_kept():
    def forget(scenario, position):
        for store in scenario.stores.values():
            for version in store.versions:
                version[:] = store.at(position.clock).ravel()
        return position

    assert read(Ssp(3), 5, 1, forget) != read(Ssp(3), 0, 2)


@pytest.mark.parametrize(("turns", "n", "wanted"), [((7, 7), 2, (7, 7)), ((7, 5), 2, (7, 5)), ((7, 5), 3, (6, 6, 6)), ((4, 4, 5), 2, (4, 4)), ((), 4, (0,) * 4)])
def test_other_workers_go_on_after_the_batches_that_are_done(turns, n, wanted):
    assert Position(9, turns).among(n) == Position(9, wanted)


@pytest.mark.parametrize("had", ["static", "dynamic"])
@pytest.mark.parametrize("gets", ["static", "dynamic"])
def test_turns_of_one_line_for_all_are_no_turns_of_shares(had, gets):
    found = saved_at({"clock": 9, "turns": [1, 23], "job": {"assign": had}}, 2, gets)
    assert found == Position(9, (1, 23) if had == gets else (12, 12)) and found.batches == 12


def run_a_quorum(seed, **changes):
    scenario = Scenario(Quorum(4), 5, 1, N_CLOCKS, coordinated=True)
    make = scenario.role
    if changes:

        def role(number, buffers):
            made = make(number, buffers)
            if number == scenario.n_roles - 1:
                made.by_clock = changes["by_clock"]
            return made

        scenario.role = role
    run(scenario, 7, seed)
    return scenario


@pytest.mark.parametrize("seed", range(10))
def test_a_late_worker_of_a_quorum_goes_on_with_the_others_after_a_pause(seed):
    assert all(set(task.final) <= {0, 1} for task in run_a_quorum(seed).tasks.values())


def test_one_that_made_up_for_the_clocks_it_skipped_would_wait_for_gradients_that_nobody_sends():
    def hangs(seed):
        try:
            run_a_quorum(seed, by_clock=False)
        except WaitTimeout:
            return True
        return False

    assert any(hangs(seed) for seed in range(10))
