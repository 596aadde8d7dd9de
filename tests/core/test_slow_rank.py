"""A slow rank makes the others wait; a cut by the ranks' speeds halves that at least. On virtual clocks, so exactly."""

from itertools import pairwise

import pytest

from mpidml.core import plugins
from mpidml.core.balance import Profile, balanced, priced
from mpidml.core.lowering import lower
from mpidml.core.replay import Seconds, replay

N_LAYERS, N_ITEMS = 16, 64
LAYERS = [Profile(1.0, 2.0, 0.0, 0.0)] * N_LAYERS
PARTS = {"F": 1 / 3, "B": 2 / 3, "I": 1 / 3, "W": 1 / 3}


def idle(schedule, plan, speeds):
    """Return the share of all ranks' time in which they wait, in a run of the program."""
    stages, n = plan.stages, len(speeds)

    def of(action):
        lo, hi, _ = stages[action.stage]
        return PARTS.get(action.op, 0.0) * sum(p.forward_seconds + p.backward_seconds for p in LAYERS[lo:hi]) / speeds[action.stage]

    return replay(lower(plugins.make("mpidml.schedules", schedule), n, N_ITEMS), Seconds(of)).bubble(n)


def equal(n):
    return priced(LAYERS, balanced(LAYERS, n, 0.0).stages, 0.0)


def cases():
    return [(schedule, n, slow) for schedule in ("one_f_one_b", "gpipe", "zero_bubble") for n in (2, 3, 4) for slow in range(n)]


@pytest.mark.parametrize(("schedule", "n", "slow"), cases())
def test_a_cut_by_speeds_halves_the_idle_time_that_a_rank_three_times_as_slow_makes(schedule, n, slow):
    speeds = [1 / 3 if rank == slow else 1.0 for rank in range(n)]
    by_speeds = balanced(LAYERS, n, 0.0, speeds=speeds)
    assert idle(schedule, by_speeds, speeds) <= idle(schedule, equal(n), speeds) / 2
    assert [b.lo - a.lo for a, b in pairwise(equal(n).stages)] != [b.lo - a.lo for a, b in pairwise(by_speeds.stages)]


def test_the_check_catches_a_cut_by_another_rank_s_speed():
    speeds = [1 / 3, 1.0, 1.0]
    broken = balanced(LAYERS, 3, 0.0, speeds=[1.0, 1.0, 1 / 3])
    assert idle("one_f_one_b", broken, speeds) > idle("one_f_one_b", equal(3), speeds) / 2
