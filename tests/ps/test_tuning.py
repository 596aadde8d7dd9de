"""By what an update is softened: the clocks that its read lacks; without a bound, what all workers have added since, over their number."""

from __future__ import annotations

import pytest

from mpidml.ps.shard import Shard
from mpidml.sim import virtual
from mpidml.sync.asp import Asp
from mpidml.sync.ssp import Ssp
from tests.scenarios import Scenario


def softened(policy, seconds, n_workers=4, n_clocks=60, by_clocks=False, in_place=False):
    """Return the staleness by which each update was softened."""
    asked = []

    class Tuned(Shard):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "tuned": True, "in_place": in_place})
            self.by_updates = self.by_updates and not by_clocks

        def _tuning(self, staleness):
            asked.append(staleness)
            return super()._tuning(0)

    scenario = Scenario(policy, n_workers, 1, n_clocks, shard_class=Tuned)
    first = scenario.worker_roles[0]
    virtual.run(scenario.roles(), lambda role, step, now: seconds(role - first), 1e-3)
    return asked


def slow_one(worker):
    return 10.0 if worker == 0 else 1.0


def test_without_a_bound_a_slow_worker_does_not_soften_the_updates_of_the_others():
    """Each read is asked for a clock ahead, so an update misses two clocks of each fast one but its own last, however far the slow one is behind."""
    fast = softened(Asp(), slow_one)
    assert sorted(fast)[len(fast) // 2] == pytest.approx((2 * 3 - 1) / 4, abs=0.3)
    assert max(fast) < 2 * 10 * 3.1 / 4 + 1, "the slow one's own updates miss what the others add in its two clocks"


def test_in_place_an_update_misses_what_others_add_while_it_is_computed():
    """Equal workers: one clock of each other one, where a read that is sent a clock ahead misses two."""
    in_place, sent = (softened(Asp(), lambda worker: 1.0 + 0.01 * worker, in_place=i) for i in (True, False))
    assert sorted(in_place)[len(in_place) // 2] == pytest.approx(3 / 4, abs=0.01)
    assert sorted(sent)[len(sent) // 2] > 1.2


def test_counting_clocks_behind_the_slowest_would_soften_nearly_everything_away():
    broken = softened(Asp(), slow_one, by_clocks=True)
    assert sorted(broken)[len(broken) // 2] > 15


def test_with_a_bound_it_is_the_clocks_that_the_read_lacks():
    assert max(softened(Ssp(2), slow_one)) <= 2
    assert set(softened(Ssp(0), lambda worker: 1.0)) == {0}
