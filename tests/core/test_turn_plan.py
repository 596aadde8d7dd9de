"""Hold the choice of --replicas auto to brute force: of all cuts and numbers of ranks that so many microbatches allow, none is sooner through a batch."""

from itertools import pairwise, product
from random import Random

import pytest

from mpidml.core import plugins, turn_plan
from mpidml.core.balance import Profile, Stage, planned, priced
from mpidml.core.errors import UserError
from mpidml.core.replay import Fault
from mpidml.core.turn_plan import chosen, layouts, seconds
from mpidml.schedules.base import Schedule, pairs
from tests.changed import changed

SCHEDULES = {name: plugins.make("mpidml.schedules", name) for name in ("one_f_one_b", "gpipe", "zero_bubble")}


def every_layout(n_layers, n_ranks, most):
    """List all layouts, in a way of its own: each layer has a number of ranks, those of a stage the same, 0 for layers that go with the one before."""
    found = []
    for ranks in product(range(min(n_ranks, most) + 1), repeat=n_layers):
        if ranks[0] and sum(ranks) == n_ranks:
            starts = [*(i for i, r in enumerate(ranks) if r), n_layers]
            found.append([Stage(lo, hi, ranks[lo]) for lo, hi in pairwise(starts)])
    return found


def cases(n=24):
    draws = Random(3)
    for _ in range(n):
        n_layers, n_ranks, n_items = draws.randint(1, 4), draws.randint(1, 5), draws.choice([1, 2, 3, 4, 7, 12])
        choices = [1.0, 2.0, 5.0], [2.0, 4.0, 9.0], [1.0, 8.0], [1.0, 30.0, 200.0]
        profiles = [Profile(*map(draws.choice, choices)) for _ in range(n_layers)]
        if n_layers * n_items >= n_ranks:
            yield profiles, n_ranks, n_items, draws.choice([0.0, 2.0, 20.0])


def worse(module, schedule="one_f_one_b"):
    """List of cases by what factor the choice takes longer than the best of all."""
    made, found = SCHEDULES[schedule], []
    for profiles, n_ranks, n_items, rate in cases():
        best = min(seconds(priced(profiles, stages, rate), profiles, n_items, made, rate) for stages in every_layout(len(profiles), n_ranks, n_items))
        found.append(seconds(module.chosen(profiles, n_ranks, n_items, made, rate), profiles, n_items, made, rate) / best)
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_layout_of_a_small_job_is_sooner_through_a_batch(schedule):
    assert max(worse(turn_plan, schedule)) == 1.0


def test_the_check_catches_a_choice_by_what_a_full_pipeline_does():
    """Kept broken: PipeDream's planner counts neither what fills nor what drains."""

    class Full:
        @staticmethod
        def chosen(profiles, n_ranks, n_items, made, rate):
            return planned(profiles, n_ranks, rate, every=n_items, most=min(n_items, n_ranks))

    assert max(worse(Full)) > 1.0


def test_the_check_catches_a_choice_that_leaves_out_a_layout():
    wrong = changed(turn_plan, [("range(1, min(n_layers, n_ranks) + 1)", "range(1, min(n_layers, n_ranks, 2) + 1)")])
    assert max(worse(wrong)) > 1.0


def test_many_ranks_get_a_layout_of_a_few_and_no_stage_has_more_ranks_than_microbatches():
    profiles = [Profile(1.0, 2.0, 1.0, 50.0)] * 12
    for n_items in (3, 8, 40):
        found = list(layouts(profiles, 24, n_items, 10.0))
        assert 0 < len(found) <= 12 and all(sum(s.replicas for s in plan.stages) == 24 and max(s.replicas for s in plan.stages) <= n_items for plan in found)
    least = min(seconds(plan, profiles, 40, SCHEDULES["gpipe"], 10.0) for plan in layouts(profiles, 24, 40, 10.0))
    assert seconds(chosen(profiles, 24, 40, SCHEDULES["gpipe"], 10.0), profiles, 40, SCHEDULES["gpipe"], 10.0) == least


def test_what_a_rank_may_take_decides_before_what_is_fast():
    profiles = [Profile(1.0, 2.0, 1.0, 100.0)] * 3
    made = SCHEDULES["one_f_one_b"]

    def nbytes(plan):
        return max(sum(profile.parameter_nbytes for profile in profiles[lo:hi]) for lo, hi, _ in plan.stages)

    assert len(chosen(profiles, 3, 6, made, 0.0).stages) == 1, "sums cost nothing"
    assert [len(chosen(profiles, 3, 6, made, 0.0, nbytes, limit).stages) for limit in (300.0, 200.0, 100.0, 50.0)] == [1, 2, 3, 3]


def fullest(plan, profiles):
    return max(sum(profile.parameter_nbytes for profile in profiles[lo:hi]) for lo, hi, _ in plan.stages)


def test_of_many_layouts_one_that_evens_out_memory_is_looked_at_too(monkeypatch):
    """The layers that take long are not those that are large."""
    profiles = [Profile(9.0, 18.0, 1.0, 1.0)] * 6 + [Profile(1.0, 2.0, 1.0, 100.0)] * 6
    made = SCHEDULES["one_f_one_b"]
    assert fullest(chosen(profiles, 6, 6, made, 0.0, lambda plan: fullest(plan, profiles), 106.0), profiles) <= 106
    monkeypatch.setattr(turn_plan, "by_memory", lambda profiles: profiles)
    assert fullest(chosen(profiles, 6, 6, made, 0.0, lambda plan: fullest(plan, profiles), 106.0), profiles) > 106


class NeverBack(Schedule):
    """The last backward is left out."""

    def order(self, rank, n_ranks, n_microbatches):
        return iter([*pairs(rank, n_microbatches, n_microbatches)][:-1])


class OnTwoAlone(NeverBack):
    """Orders for other numbers of ranks are not known."""

    def order(self, rank, n_ranks, n_microbatches):
        return pairs({2: rank}[n_ranks], n_microbatches, n_microbatches)


CANNOT_BE = [(NeverBack(), "rank 0, at its end: 0U is never done, the gradient of 0B3 "), (OnTwoAlone(), "its order ends by KeyError: 3, at ")]


@pytest.mark.parametrize(("schedule", "says"), CANNOT_BE)
def test_a_schedule_that_cannot_be_is_refused_as_it_is_without_a_choice(schedule, says):
    profiles = [Profile(1.0, 2.0, 1.0, 1.0)] * 2
    with pytest.raises(UserError) as caught:
        chosen(profiles, 3, 6, schedule, 0.0, where="--schedule mine.py")
    assert str(caught.value).startswith(f"--schedule mine.py: {says}")
    bare = changed(turn_plan, [("check(program, where, ", "replay(program, "), ("import Seconds", "import Seconds, replay")])
    with pytest.raises((Fault, UserError)) as raised:
        bare.chosen(profiles, 3, 6, schedule, 0.0)
    assert isinstance(schedule, OnTwoAlone) or raised.type is Fault


def test_too_few_microbatches_for_all_ranks_are_one_line():
    with pytest.raises(UserError) as caught:
        chosen([Profile(1.0, 2.0, 1.0, 1.0)] * 2, 5, 2, SCHEDULES["gpipe"], 0.0)
    assert str(caught.value) == (
        "--replicas auto: 2 layer(s) on at most 2 rank(s) each, as there are microbatches, do not take 5 ranks; give --microbatches 3 or more, or fewer ranks"
    )
