"""Hold every file of mpidml/sync to what it declares in whole runs: 20 seeded straggler patterns on virtual clocks, and the same roles on MPI."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.core.errors import WaitTimeout
from mpidml.core.role import PUSH, Lease, Send
from mpidml.sim import virtual
from mpidml.sync.asp import Asp
from mpidml.sync.base import SyncPolicy
from mpidml.sync.warmup import Warmup
from tests.changed import changed
from tests.scenarios import Scenario, misses, run_on_mpi, sums_up

NAMES = plugins.names("mpidml.sync")
N_WORKERS, N_CLOCKS = 4, 40
FEW_CLOCKS = 14
"""Enough for two slots of slowness, and for the pause."""
each = pytest.mark.parametrize("name", NAMES)


def policy_of(name):
    """Make a policy that comes to what it declares within FEW_CLOCKS."""
    return plugins.make("mpidml.sync", {"warmup": "warmup:5:3"}.get(name, name))


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
    return max((turn.staleness for task in scenario.tasks.values() for turn in task.turns), default=0)


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
    policy = policy_of(name)
    for repeat in {False, policy.repeatable}:
        missed, largest, bound = judged(policy, seed, repeat)  # a deadlock ends the virtual run with an error
        assert missed == []
        assert bound is None or largest <= bound


@each
def test_what_a_policy_allows_is_made_use_of_in_some_pattern(name):
    """Else the patterns would show nothing of it."""
    policy = policy_of(name)
    largest = max(judged(policy, seed)[1] for seed in range(20))
    assert (largest > 0) == (policy.bound != 0)


class Unbounded(Warmup):
    """Forgets its bound once it is warm."""

    def oldest_readable(self, clock, worker=-1, view=None):
        return super().oldest_readable(clock, worker, view) if clock <= self.n_clocks else 0


def test_a_warm_up_that_lets_everybody_run_on_is_caught():
    assert any(judged(Unbounded(5, 3), seed)[0] for seed in range(20))


def test_a_policy_that_declares_a_bound_that_it_does_not_keep_is_caught():
    found = [judged(Asp(), seed, declared=2) for seed in range(20)]
    assert any(missed for missed, _, _ in found) and any(largest > 2 for _, largest, _ in found)


STUCK = {  # a policy file -> what servers say that hold questions back, and what workers say that wait, or a rank that hosts all roles
    "lets nobody read clock 7 before clock 8": (
        """
from mpidml.sync.base import SyncPolicy

class Stuck(SyncPolicy):
    bound = 0

    def oldest_readable(self, clock, worker=-1, view=None):
        return clock + (clock == 7)
""",
        r"pull of all rows by worker \d waits for clock 8 since \d+\.\d s; worker \d is at clock 7 and last spoke",
        r"pull for clock 7 lacks 2 answer\(s\), asked of server\(s\) 0, 1",
    ),
    "grants nobody a turn of epoch 3": (
        """
from mpidml.sync.adaptive import Adaptive, Epochs

class Stuck(Adaptive):
    def gate(self, n_workers, fixed_shares):
        return Nobody(n_workers, self.minimum, self.cap, False, True)

class Nobody(Epochs):
    def starts(self, now):
        return [start for start in super().starts(now) if start.clock < 3]
""",
        r"worker \d waits for the coordinator's leave to start its clock, .* asks for its next clock since .* s; epoch 3 waits for worker\(s\) 0, 1, 2, 3",
        r"worker \d asks for its next clock since .* s; epoch 3 waits for worker\(s\) 0, 1, 2, 3",
    ),
    "admits fewer gradients than the tables wait for": (
        """
from mpidml.sync.quorum import FirstGradients, Quorum

class Stuck(Quorum):
    def gate(self, n_workers, fixed_shares):
        return FirstGradients(n_workers, self.needed(n_workers) - 1)
""",
        r"pull of all rows by worker \d waits for clock 1 since \d+\.\d s; worker \d is at clock 0 and last spoke",
        r"pull for clock \d lacks 2 answer\(s\), asked of server\(s\) 0, 1",
    ),
}


@pytest.fixture(params=STUCK)
def stuck(request, tmp_path):
    """Give a policy under which a run cannot end, and what is said of it."""
    text, *says = STUCK[request.param]
    (tmp_path / "stuck.py").write_text(text)
    return plugins.make("mpidml.sync", str(tmp_path / "stuck.py")), *says


def test_a_policy_that_lets_nobody_go_is_caught_by_who_waits_for_whom(stuck):
    policy, held, asked = stuck
    for seed in range(20):
        with pytest.raises(WaitTimeout, match=asked if seed % 3 == 2 else held):  # servers that send by themselves hold nothing back
            judged(policy, seed)


class Ticking:
    """A clock that passes a second when somebody sleeps, and else hardly moves."""

    now = 0.0

    def __call__(self):
        self.now += 1e-6
        return self.now

    def sleep(self, seconds):
        self.now += 1.0


class Whole:
    """Changes nothing of a driver."""


def driver_of(changes):
    """Return the driver of MPI with `changes`; without this nothing here loads MPI."""
    from mpidml.runtime.driver import Driver

    return type(changes.__name__, (changes, Driver), {})


def by_itself(alone, monkeypatch, policy, changes=Whole):
    """Run the scenario on one rank, where one who sleeps sleeps for ever; return what the judge finds. WaitTimeout as on any."""
    clock = Ticking()
    monkeypatch.setattr("mpidml.runtime.driver.clock_now", clock)
    monkeypatch.setattr("mpidml.runtime.driver.time", SimpleNamespace(sleep=clock.sleep))
    scenario = Scenario(policy, N_WORKERS, 2, N_CLOCKS, repeat=policy.repeatable)
    ran = driver_of(changes)(alone, dict(enumerate(scenario.roles())), [0] * scenario.n_roles, wait_limit_seconds=20.0)
    try:
        ran.run()
    except WaitTimeout:
        ran.end()
        raise
    return misses(scenario, scenario.seen(), policy.bound)


def test_on_mpi_too_a_policy_that_lets_nobody_go_ends_with_who_waits_for_whom(stuck, alone, monkeypatch):
    policy, _, says = stuck
    with pytest.raises(WaitTimeout, match=rf"\[rank 0/1\] .*{says}.*; the limit is 20 s"):
        by_itself(alone, monkeypatch, policy)


@each
def test_on_one_rank_nobody_sleeps(name, alone, monkeypatch):
    """So that the limit of the test before is no chance."""
    assert by_itself(alone, monkeypatch, plugins.make("mpidml.sync", name)) == []


def on_clocks(policy, seed, clocks=virtual, repeat=None, n_clocks=N_CLOCKS):
    """Return what is read on virtual clocks in one pattern."""
    scenario = Scenario(policy, N_WORKERS, 2, n_clocks, repeat=policy.repeatable if repeat is None else repeat)
    clocks.run(scenario.roles(), lambda role, clock, now: pattern(seed)(role - scenario.worker_roles[0], clock))
    return scenario.seen()


def on_ranks(policy, comm, seed=1, n_clocks=N_CLOCKS):
    """Return what is read on MPI in one pattern, what the judge finds in it, and the largest lead of a worker of this rank."""
    seconds = pattern(seed)
    scenario = Scenario(
        policy, N_WORKERS, 2, n_clocks, repeat=policy.repeatable, on_compute=lambda worker, clock: time.sleep(2e-4 * min(seconds(worker, clock), 5))
    )
    seen = run_on_mpi(scenario, comm)
    return seen, misses(scenario, seen, policy.bound), lead(scenario)


def unlike(one, other):
    """List the reads that show something else in one run than in the other."""
    one, other = (sorted(seen, key=lambda s: (s.worker, s.clock)) for seen in (one, other))
    return [(a.worker, a.clock) for a, b in zip(one, other, strict=True) if a.version != b.version or not np.array_equal(a.values, b.values)]


@pytest.mark.mpi
@each
def test_both_drivers_agree(comm, name):
    """On MPI the same judge finds nothing in any pattern, no lead is larger; where the policy repeats, each read shows the bits that it shows on virtual clocks."""
    policy = policy_of(name)
    for seed in range(20):
        n_clocks = N_CLOCKS if seed == 1 else FEW_CLOCKS
        seen, missed, largest = on_ranks(policy, comm, seed, n_clocks)
        virtually = on_clocks(policy, seed, n_clocks=n_clocks)
        assert missed == []
        assert policy.bound is None or largest <= policy.bound
        assert policy.gate_at == "push" or len(seen) == len(virtually) == N_WORKERS * n_clocks  # a quorum skips some
        assert not policy.repeatable or unlike(seen, virtually) == []


@pytest.mark.mpi(min_size=2)
def test_a_lead_beyond_what_a_policy_declares_is_seen_on_mpi(comm):
    """That of asp, which declares none: worker 2 is slow for good."""
    assert max(comm.allgather(on_ranks(Asp(), comm, 18)[2])) > 2


@pytest.mark.parametrize("name", [name for name in NAMES if plugins.make("mpidml.sync", name).repeatable])
def test_what_repeats_shows_the_same_in_every_pattern(name):
    policy = plugins.make("mpidml.sync", name)
    first = on_clocks(policy, 0)
    assert all(unlike(first, on_clocks(policy, seed)) == [] for seed in range(1, 20))


class ByArrival(SyncPolicy):
    """Says that it repeats, and goes by who asks first."""

    repeatable, bound, asked = True, 3, 0

    def oldest_readable(self, clock, worker=-1, view=None):
        self.asked += 1
        return clock - self.asked % 4


class ByTime(SyncPolicy):
    """Says that it repeats, and goes by when its worker ended a clock last."""

    repeatable, bound, timed = True, 3, True

    def oldest_readable(self, clock, worker=-1, view=None):
        return clock - 3 * (view is not None and view.last[worker] % 2 < 1)


@pytest.mark.parametrize("broken", [ByArrival, ByTime])
def test_a_policy_that_goes_by_time_or_arrival_is_caught(broken):
    assert unlike(on_clocks(broken(), 1), on_clocks(broken(), 2))
    assert not unlike(on_clocks(broken(), 1), on_clocks(broken(), 1)), "the patterns alone make the difference"


@pytest.mark.mpi
@pytest.mark.parametrize("broken", [ByArrival, ByTime])
def test_a_policy_that_goes_by_time_or_arrival_is_caught_between_the_drivers(comm, broken):
    assert unlike(on_ranks(broken(), comm)[0], on_clocks(broken(), 1))


def test_reads_that_show_whatever_is_there_are_caught():
    policy = plugins.make("mpidml.sync", "ssp:3")
    assert unlike(on_clocks(policy, 1, repeat=False), on_clocks(policy, 2, repeat=False))


LOST = [("                n_messages += 1\n", "                n_messages += 1\n                if n_messages == 200:\n                    continue\n")]
EMPTY = [("landing[:] = message.data.array.view(landing.dtype)", "pass")]


@each
def test_virtual_clocks_that_lose_a_message_are_caught(name):
    with pytest.raises(WaitTimeout, match=r"role\(s\) wait for ever at .* s: .*(worker|server)"):
        on_clocks(plugins.make("mpidml.sync", name), 1, changed(virtual, LOST))


def test_virtual_clocks_that_leave_what_an_answer_carries_behind_are_caught():
    policy = plugins.make("mpidml.sync", "bsp")
    assert unlike(on_clocks(policy, 1), on_clocks(policy, 1, changed(virtual, EMPTY)))


class Loses:
    """Forgets once what a role asks for."""

    n_sends = 0

    def perform(self, me, effects):
        self.n_sends += (n := sum(type(effect) is Send for effect in effects))
        return super().perform(me, [] if n and self.n_sends - n < 200 <= self.n_sends else effects)


@each
def test_a_driver_of_mpi_that_loses_what_a_role_sends_is_caught(name, alone, monkeypatch):
    with pytest.raises(WaitTimeout, match=r"\[rank 0/1\] .*(worker|server).*; the limit is 20 s"):
        by_itself(alone, monkeypatch, plugins.make("mpidml.sync", name), Loses)


class Forgets:
    """Sends zeros in place of the third gradient of each worker."""

    def perform(self, me, effects):
        return super().perform(me, [self.emptied(effect) for effect in effects])

    def emptied(self, effect):
        if type(effect) is not Send or effect.message.kind != PUSH or effect.message.clock != 2 or effect.message.data is None:
            return effect
        return effect._replace(message=effect.message._replace(data=Lease(np.zeros_like(effect.message.data.array))))


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["bsp", "ssp", "asp"])
def test_a_driver_of_mpi_that_forgets_what_a_push_carries_is_caught(comm, monkeypatch, name):
    monkeypatch.setattr("mpidml.runtime.driver.Driver", driver_of(Forgets))
    with pytest.raises(AssertionError, match="the final values are not the sum of all updates"):
        on_ranks(plugins.make("mpidml.sync", name), comm)
