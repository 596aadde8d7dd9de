"""A learning rate goes on by global batches: under every policy and assignment each batch's factor is that of each of its shares, once."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from mpidml.core import plugins
from mpidml.core.role import PUSH, Message
from mpidml.ps.shard import Shard
from mpidml.sim import virtual
from mpidml.sync.base import Tuning
from mpidml.sync.ssp import Ssp
from tests.scenarios import Scenario

N_WORKERS, N_CLOCKS = 4, 24
NAMES = [name for name in plugins.names("mpidml.sync") if name != "quorum"]  # which drops shares


class Scheduled(Shard):
    """A shard whose factor of batch b is b + 1, and which keeps what its updates were made with."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{**options, "rate": self.factor})
        self.used = []
        whole = self.store.apply
        self.store.apply = lambda deltas, tuning: (self.used.append((len(deltas), tuning.rate)), whole(deltas, tuning))

    def factor(self, batch):
        return batch + 1.0


class ByClock(Scheduled):
    """Takes the clock of a message for the number of its batch."""

    def _apply(self, store, deltas, staleness):
        super()._apply(store, [delta._replace(batch=delta.clock) for delta in deltas], staleness)


class ByUpdates(Scheduled):
    def factor(self, batch):
        return len(self.used) + 1.0


def factors(name, dynamic, shard_class=Scheduled, seconds=lambda worker: 1.0 + worker):
    """Return how many shares were applied with each factor."""
    scenario = Scenario(plugins.make("mpidml.sync", name), N_WORKERS, 1, N_CLOCKS, shard_class=shard_class, dynamic=dynamic)
    roles = scenario.roles()
    virtual.run(roles, lambda role, step, now: seconds(role - scenario.worker_roles[0]), 1e-3)
    found = Counter()
    for n_shares, rate in roles[0].used:
        found[rate] += n_shares
    return found


EVERY_SHARE = {float(batch + 1): N_WORKERS for batch in range(N_CLOCKS)}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_share_is_applied_at_the_rate_of_its_batch(name, dynamic):
    found = factors(name, dynamic)
    if name == "bsp" and dynamic:  # the shares of one clock may be of two batches; they are one update, at the rate of the later one
        assert sum(found.values()) == N_WORKERS * N_CLOCKS and max(found) == N_CLOCKS
    else:
        assert found == EVERY_SHARE


@pytest.mark.parametrize("broken", [ByClock, ByUpdates])
def test_neither_the_clock_of_a_worker_nor_the_number_of_updates_would_do(broken):
    assert factors("asp", True, broken) != EVERY_SHARE and factors("adaptive", False, broken) != EVERY_SHARE
    assert factors("bsp", False, broken) == EVERY_SHARE  # where all are the same


def test_an_update_of_several_shares_takes_the_rate_of_the_latest_and_is_softened_besides():
    taken = []
    store = SimpleNamespace(apply=lambda deltas, tuning: taken.append(tuning))
    shares = [Message(PUSH, batch=batch) for batch in (3, 7, 4)]
    for tuned in (True, False):
        shard = Shard("weights", range(3), Ssp(2), store, tuned=tuned, rate=lambda batch: batch + 1.0)
        shard._apply(store, shares, 1)
        shard._apply(store, [], 0)
    assert taken == [Tuning(8 * 0.5, 2.0), Tuning(1.0, 1.0), Tuning(8.0, 1.0), Tuning(1.0, 1.0)]


def test_under_a_quorum_a_clock_is_a_batch():
    found = factors("quorum:3", False)
    assert set(found.values()) == {3} and sorted(found) == [float(batch + 1) for batch in range(len(found))]
