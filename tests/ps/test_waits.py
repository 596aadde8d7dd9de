"""Who made whom wait: the waits that workers add up are those of the rule of their policy, each with its culprit."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.core.cost import CostModel
from mpidml.ps import waits as waits_module
from mpidml.ps import worker as worker_module
from mpidml.ps.shard import Shard
from mpidml.ps.waits import MOST_BINS, Waited
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


def added(waits, parts=1, of=Waited):
    """Add waits (since, now), dealt out to `parts` records that are then merged."""
    records = [of() for _ in range(parts)]
    for number, (since, now) in enumerate(waits):
        records[number % parts].add(number, since, now)
    for record in records[1:]:
        records[0].merge(record)
    return records[0]


def exact_middle(waits):
    """Return by bisection when a twentieth of the waited seconds was over, and when one was still to come."""
    since, now = np.array(waits).T
    found = []
    for share in (0.05, 0.95):
        low, high = since.min(), now.max()
        for _ in range(60):
            middle = (low + high) / 2
            over = (np.clip(middle, since, now) - since).sum() >= share * (now - since).sum()
            low, high = (low, middle) if over else (middle, high)
        found.append(low)
    return found


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("start", [0.0, 90_000.0])
def test_when_most_waiting_was_is_known_within_a_bin(seed, start, parts):
    """Waits of any lengths, one after the other and at once: the middle of their seconds, exact but for a bin, in little memory."""
    rng = np.random.default_rng(seed)
    waits = []
    for _ in range(rng.integers(1, 5)):
        ends = start + np.cumsum(rng.exponential(10.0 ** rng.integers(-4, 1), rng.integers(1, 800)) * rng.choice([1, 1, 1, 40]))
        waits += [(end - length, end) for end, length in zip(ends, np.diff(ends, prepend=start) * rng.uniform(size=len(ends)), strict=True)]
    waits.sort(key=lambda wait: wait[1])
    record = added(waits, parts)
    assert len(record.sums) <= MOST_BINS and len(record.slopes) <= MOST_BINS and record.seconds == pytest.approx(sum(e - s for s, e in waits))
    assert 1 / record.rate <= max(4 * (waits[-1][1] - start) / MOST_BINS, 2 / 1024)
    assert record.middle() == pytest.approx(exact_middle(waits), abs=1 / record.rate)


def test_a_wait_that_is_longer_than_many_bins_counts_all_along_it():
    waits = [(0.001 * k, 0.001 * k + 0.0005) for k in range(50)] + [(1.0, 101.0)]
    assert added(waits).middle() == pytest.approx((6.0, 96.0), abs=4.0)
    wrong = changed(waits_module, [("if begin == end:", "if True:")]).Waited
    assert added(waits, of=wrong).middle()[0] > 90, "counted at its end alone"


def test_a_worker_that_is_slow_for_a_while_is_waited_for_in_that_while():
    """Two like workers under bsp, one of them four times slower from 20 s to 60 s: small waits before and after do not say when it was."""
    rng = np.random.default_rng(6)
    seconds = 0.1 * rng.uniform(0.9, 1.1, (2, 404))
    seconds[1, 200:300] *= 4
    found = simulate(Plan(Bsp(), 2, 404, CostModel((1.0,), latency=0.0), measured=seconds.tolist())).waited[2]
    begin, end = seconds.max(axis=0)[:200].sum(), seconds.max(axis=0)[:300].sum()
    assert found.first < 1 and found.last > end + 8
    assert found.middle() == pytest.approx((begin + 0.05 * (end - begin), end - 0.05 * (end - begin)), abs=2.0)
