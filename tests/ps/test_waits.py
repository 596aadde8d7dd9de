"""Who made whom wait: the waits that workers add up are those of the rule of their policy, each with its culprit."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.core.cost import CostModel
from mpidml.ps import worker as worker_module
from mpidml.ps.shard import Shard
from mpidml.ps.waits import Waited
from mpidml.sim import parameter_server, virtual
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sync.adaptive import Adaptive
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from mpidml.sync.ssp import Ssp
from tests.changed import changed
from tests.scenarios import still_roles
from tests.sim.test_staleness import by_rule


def expected(bound, seconds):
    """Return waits[w, v]: seconds that worker w stands idle until v ends a clock, by the recurrence; the wait for the final values is none."""
    n, n_clocks = seconds.shape
    ends, waits = by_rule(bound, seconds), np.zeros((n, n))
    for clock in range(1, n_clocks):
        needed = clock - bound - 1
        if needed < 0:
            continue
        culprit = ends[:, needed].argmax()
        waits[:, culprit] += np.maximum(ends[culprit, needed] - ends[:, clock - 1], 0)
    return waits


def counted(policy, seconds, shard_class=Shard):
    """Return the same as real roles count it on virtual clocks without latency."""
    n, n_clocks = seconds.shape
    roles = still_roles(policy, n, n_clocks, shard_class)
    virtual.run(roles, lambda role, clock, now: seconds[role - 1, clock] if clock < n_clocks else 0.0, lambda a, b, number: 0.0)
    waits = np.zeros((n, n))
    for worker, role in enumerate(roles[1:]):
        for culprit, waited in role.tally.waited.items():
            if culprit:  # role 0 is the server, which answers at once
                waits[worker, culprit - 1] += waited.seconds
            else:
                assert waited.seconds == 0
    return waits


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("policy", "bound"), [(Bsp(), 0), (Ssp(1), 1), (Ssp(3), 3)])
def test_each_wait_is_counted_once_and_for_the_worker_that_ended_it(policy, bound, seed):
    seconds = np.random.default_rng(seed).exponential(1.0, (4, 80))
    assert counted(policy, seconds) == pytest.approx(expected(bound, seconds), rel=1e-9, abs=1e-9)


def test_all_wait_for_a_worker_that_is_slow_for_good():
    seconds = np.random.default_rng(0).uniform(0.9, 1.1, (4, 50)) * np.array([[1], [1], [3], [1]])
    waits = counted(Bsp(), seconds)
    assert waits[:, 2].sum() == pytest.approx(waits.sum()) and waits[2].sum() == pytest.approx(0, abs=1e-9)


class BlamesTheFirst(Shard):
    """Says of every answer that the first worker made it possible."""

    def _moved(self, by):
        return super()._moved(1)


def test_the_rule_catches_a_server_that_names_the_wrong_worker():
    seconds = np.random.default_rng(1).exponential(1.0, (4, 40))
    assert not np.allclose(counted(Ssp(1), seconds, BlamesTheFirst), expected(1, seconds))


def test_waits_keep_the_longest_and_their_time():
    waited = Waited()
    for clock, since, now in ((3, 1.0, 1.5), (4, 2.0, 4.0), (9, 6.0, 7.0)):
        waited.add(clock, since, now)
    assert waited == Waited(times=3, seconds=3.5, longest_seconds=2.0, longest_clock=4, first=1.0, last=7.0)


def shares(policy, seconds, latency=0.0, dynamic=False):
    """Return the seconds that all workers of a simulated run waited for each of them."""
    n, n_clocks = seconds.shape
    found = simulate(Plan(policy, n, n_clocks, CostModel((1.0,), latency=latency), dynamic=dynamic, measured=seconds.tolist()))
    assert 0 not in found.waited or found.waited[0].seconds < 1e-9 + 3 * latency * n * n_clocks, "the server is not late"
    return np.array([found.waited[w + 1].seconds if w + 1 in found.waited else 0.0 for w in range(n)])


OLD_ORDER = [
    (
        "self.granted_by if self.granted_by >= 0 else message.clock if message.clock >= 0 else source",
        "message.clock if message.clock >= 0 else self.granted_by if self.granted_by >= 0 else source",
    )
]


@pytest.mark.parametrize("dynamic", [False, True])
def test_at_a_barrier_of_a_gate_all_wait_for_whom_it_opened_after(monkeypatch, dynamic):
    """One execution each between barriers is bsp, so its waits are bsp's; the last of those granted, whose tick comes last, is to blame for none."""
    seconds = np.random.default_rng(3).exponential(1.0, (4, 60))
    assert shares(Adaptive(1, 1), seconds, dynamic=dynamic) == pytest.approx(expected(0, seconds).sum(axis=0), rel=1e-6)
    alike = np.random.default_rng(4).exponential(1.0, (4, 400))
    waits = shares(Adaptive(1, 8), alike, latency=1e-4, dynamic=dynamic)
    assert waits / waits.sum() == pytest.approx([0.25] * 4, abs=0.07)
    monkeypatch.setattr(parameter_server, "Worker", changed(worker_module, OLD_ORDER).Worker)
    assert shares(Adaptive(1, 1), seconds, dynamic=dynamic) != pytest.approx(expected(0, seconds).sum(axis=0), rel=0.3)
    wrong = shares(Adaptive(1, 8), alike, latency=1e-4, dynamic=dynamic)
    assert wrong[3] > 0.6 * wrong.sum(), "the old order blames the last of the list"


def test_workers_that_wait_for_nothing_but_the_end_wait_for_nobody(monkeypatch):
    seconds = np.random.default_rng(5).exponential(1.0, (8, 50))
    assert not shares(Asp(), seconds).any()
    monkeypatch.setattr(parameter_server, "Worker", changed(worker_module, [("if not self.last:  #", "if True:  #")]).Worker)
    wrong = shares(Asp(), seconds)
    assert wrong.max() == wrong.sum() > 1, "then the last one of all is the only straggler"
