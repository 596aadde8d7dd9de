"""No cut of a chain of layers beats the one that is returned, and it costs what it says: every other cut has been tried."""

import math
import random
from fractions import Fraction
from functools import cache
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.balance import Profile, Stage, balanced, by_hand, planned, priced, route
from mpidml.core.errors import UserError

N_PROFILES = 500


def compute_of(profiles):
    return sum(Fraction(p.forward_seconds) + Fraction(p.backward_seconds) for p in profiles)


@cache
def stage_seconds(profiles, r, bandwidth):
    bytes_of_sum = Fraction(4 * (r - 1) * sum(p.parameter_nbytes for p in profiles), r)
    return max(compute_of(profiles), bytes_of_sum / Fraction(bandwidth) if bandwidth else 0) / r


def costs(profiles, stages, bandwidth, speeds=()):
    """List (seconds, what it is, its number) of each stage and of the link behind it, as exact fractions, from the formulas alone."""
    found = []
    for k, (lo, hi, r) in enumerate(stages):
        found.append((stage_seconds(tuple(profiles[lo:hi]), r, bandwidth) / (Fraction(speeds[k]) if speeds else 1), "stage", k))
        if k + 1 < len(stages) and hi and bandwidth:
            found.append((Fraction(2 * profiles[hi - 1].activation_nbytes) / Fraction(bandwidth), "link", k))
    return found


def bottleneck(profiles, stages, bandwidth, speeds=()):
    return max(seconds for seconds, _, _ in costs(profiles, stages, bandwidth, speeds))


def nbytes(profiles, stage, n_in_flight, optimizer_factor, n_versions):
    part = profiles[stage.lo : stage.hi]
    return sum(p.parameter_nbytes for p in part) * (n_versions + 1 + optimizer_factor) + n_in_flight * sum(p.activation_nbytes for p in part)


def straight_cuts(n_layers, n_stages):
    """List every cut over n_stages ranks: none empty where layers are enough, otherwise empty ones behind the first."""
    n_full = min(n_layers, n_stages)
    for inner in combinations(range(1, n_layers), n_full - 1):
        edges = [0, *inner, n_layers]
        edges[1:1] = [edges[1]] * (n_stages - n_full)
        yield tuple(Stage(lo, hi) for lo, hi in pairwise(edges))


def replicated_cuts(n_layers, n_ranks):
    """List every cut whose stages take all ranks."""
    for n_stages in range(1, min(n_layers, n_ranks) + 1):
        for stages in straight_cuts(n_layers, n_stages):
            for replicas in product(range(1, n_ranks + 1), repeat=n_stages):
                if sum(replicas) == n_ranks:
                    yield tuple(Stage(s.lo, s.hi, r) for s, r in zip(stages, replicas, strict=True))


def tie_break(profiles, stages, bandwidth, speeds=()):
    return bottleneck(profiles, stages, bandwidth, speeds), len(stages), [(s.hi, -s.replicas) for s in stages]


def check(plan, profiles, bandwidth, cuts, speeds=()):
    """Compare a plan with every cut: its bottleneck is the least, is that of its stages, and ties are broken as promised."""
    best = min(cuts, key=lambda stages: tie_break(profiles, stages, bandwidth, speeds))
    found = costs(profiles, plan.stages, bandwidth, speeds)
    assert float(max(found)[0]) == pytest.approx(plan.seconds, rel=1e-12), "does not cost what it says"
    assert float(bottleneck(profiles, best, bandwidth, speeds)) == pytest.approx(plan.seconds, rel=1e-12), "another cut is faster"
    assert next(c for c in found if c[1:] == (plan.slowest, plan.number))[0] == max(found)[0], "names another than the slowest"
    assert plan.stages == best


def drawn(random_, n_most=8):
    """Draw layers; every second time from few values, so that many cuts tie."""
    n = random_.randint(1, n_most)
    if random_.random() < 0.5:
        return [Profile(random_.randint(0, 3), random_.randint(0, 3), random_.randint(0, 4), random_.randint(0, 4)) for _ in range(n)]
    logs = lambda: 2.0 ** random_.uniform(-3, 3)
    return [Profile(logs(), logs(), random_.randint(0, 10), random_.randint(0, 10)) for _ in range(n)]


def cases(seed, n_profiles=N_PROFILES):
    random_ = random.Random(seed)
    for _ in range(n_profiles):
        yield drawn(random_), random_.randint(1, 4), random_.choice([0, 0.5, 1, 2, 8, 1000])


def test_no_straight_cut_is_faster_than_the_balanced_one():
    for profiles, n_stages, bandwidth in cases(1):
        check(balanced(profiles, n_stages, bandwidth), profiles, bandwidth, straight_cuts(len(profiles), n_stages))


def paced(seed, n_profiles=N_PROFILES):
    """Draw cases with a speed for each stage: powers of two, so that ties are exact."""
    random_ = random.Random(seed)
    for profiles, n_stages, bandwidth in cases(seed, n_profiles):
        yield profiles, n_stages, bandwidth, [2.0 ** random_.randint(-2, 1) for _ in range(n_stages)]


def test_no_straight_cut_is_faster_on_ranks_of_different_speeds():
    for profiles, n_stages, bandwidth, speeds in paced(7):
        plan = balanced(profiles, n_stages, bandwidth, speeds=speeds)
        check(plan, profiles, bandwidth, straight_cuts(len(profiles), n_stages), speeds)
        assert plan == priced(profiles, plan.stages, bandwidth, speeds)


@pytest.mark.parametrize("broken", [lambda speeds: (), lambda speeds: speeds[::-1], lambda speeds: [1 / speed for speed in speeds]])
def test_the_check_catches_speeds_that_are_left_out_or_another_rank_s(broken):
    n_caught = 0
    for profiles, n_stages, bandwidth, speeds in paced(8, 200):
        stages = balanced(profiles, n_stages, bandwidth, speeds=broken(speeds)).stages
        try:
            check(priced(profiles, stages, bandwidth, speeds), profiles, bandwidth, straight_cuts(len(profiles), n_stages), speeds)
        except AssertionError as error:
            n_caught += FASTER in str(error)
    assert n_caught >= 20


@pytest.mark.parametrize("speeds", [[1.0], [1.0, 0.0], [1.0, math.nan]])
def test_what_are_no_speeds_is_one_line(speeds):
    with pytest.raises(UserError, match=r"stages: 1(, (0|nan))? are not the speeds of 2 stages; give each one above 0$"):
        balanced(layers(1, 2, 3), 2, 0, speeds=speeds)


def test_no_plan_on_all_ranks_is_faster_than_the_planned_one():
    shapes = set()
    for profiles, n_ranks, bandwidth in cases(2):
        plan = planned(profiles, n_ranks, bandwidth)
        check(plan, profiles, bandwidth, replicated_cuts(len(profiles), n_ranks))
        shapes.add(tuple(s.replicas for s in plan.stages))
    assert {(4,), (1, 1, 1, 1), (2, 2), (3, 1), (1, 3), (1, 2, 1)} <= shapes, "the draws have every kind of plan"


def test_memory_limits_leave_the_fastest_of_those_that_fit_and_the_error_names_the_least_that_would():
    random_, n_refused = random.Random(3), 0
    for profiles, n, bandwidth in cases(3):
        limit, factor = random_.randint(0, 200), random_.choice([0.0, 1.0, 2.0])
        n_refused += check_limited(profiles, n, bandwidth, limit, factor)
    assert 0.1 * 2 * N_PROFILES < n_refused < 0.9 * 2 * N_PROFILES


def check_limited(profiles, n, bandwidth, limit, factor):
    def straight(stages):
        return max(nbytes(profiles, s, n - k, factor, 1) for k, s in enumerate(stages))

    def replicated(stages):
        flights = [math.ceil(sum(t.replicas for t in stages[k:]) / s.replicas) for k, s in enumerate(stages)]
        return max(nbytes(profiles, s, f, factor, f) for s, f in zip(stages, flights, strict=True))

    n_refused = 0
    for plan, need, every in ((balanced, straight, straight_cuts), (planned, replicated, replicated_cuts)):
        cuts = list(every(len(profiles), n))
        if fits := [stages for stages in cuts if need(stages) <= limit]:
            check(plan(profiles, n, bandwidth, limit, optimizer_factor=factor), profiles, bandwidth, fits)
        else:
            n_refused += 1
            least = min(map(need, cuts))
            with pytest.raises(UserError, match=rf"need {math.ceil(least)} bytes .* a rank has {limit};"):
                plan(profiles, n, bandwidth, limit, optimizer_factor=factor)
    return n_refused


def forgets_the_links(profiles, n_stages, bandwidth):
    return priced(profiles, balanced(profiles, n_stages, 0).stages, bandwidth)


def greedy(profiles, n_stages, bandwidth):
    """Fill each stage until it has its mean share."""
    share, stages, lo = compute_of(profiles) / n_stages, [], 0
    for k in range(n_stages):
        hi, most = lo + 1, len(profiles) - (n_stages - 1 - k)
        while hi < most and (k == n_stages - 1 or compute_of(profiles[lo:hi]) < share):
            hi += 1
        stages.append(Stage(lo, hi))
        lo = hi
    return priced(profiles, stages, bandwidth)


def same_layers_each(profiles, n_stages, bandwidth):
    edges = [k * len(profiles) // n_stages for k in range(n_stages + 1)]
    return priced(profiles, [Stage(lo, hi) for lo, hi in pairwise(edges)], bandwidth)


def says_less(profiles, n_stages, bandwidth):
    plan = balanced(profiles, n_stages, bandwidth)
    return plan._replace(seconds=plan.seconds * 0.99)


def count_caught(broken, seed, cuts, says):
    """Count the draws, of those with something to choose, in which `check` objects to a broken variant for that reason."""
    n_caught = 0
    for profiles, n, bandwidth in cases(seed, 200):
        if 2 <= n < len(profiles):
            try:
                check(broken(profiles, n, bandwidth), profiles, bandwidth, cuts(len(profiles), n))
            except AssertionError as error:
                n_caught += says in str(error)
    return n_caught


FASTER = "another cut is faster"


@pytest.mark.parametrize(
    ("broken", "says"), [(forgets_the_links, FASTER), (greedy, FASTER), (same_layers_each, FASTER), (says_less, "does not cost what it says")]
)
def test_the_check_catches_a_cut_that_is_not_the_best(broken, says):
    assert count_caught(broken, 4, straight_cuts, says) >= 10


def never_replicates(profiles, n_ranks, bandwidth):
    return balanced(profiles, n_ranks, bandwidth)


def sums_are_free(profiles, n_ranks, bandwidth):
    free = [p._replace(parameter_nbytes=0) for p in profiles]
    return priced(profiles, planned(free, n_ranks, bandwidth).stages, bandwidth)


@pytest.mark.parametrize("broken", [never_replicates, sums_are_free])
def test_the_check_catches_a_plan_that_is_not_the_best(broken):
    assert count_caught(broken, 5, replicated_cuts, FASTER) >= 20


def layers(*seconds, activation=0, parameter=0):
    return [Profile(s / 3, s * 2 / 3, activation, parameter) for s in seconds]


def sizes(plan):
    return [s.hi - s.lo for s in plan.stages]


@given(st.integers(1, 6), st.integers(1, 5), st.floats(1e-9, 1e3))
def test_equal_layers_make_equal_stages(n_each, n_stages, seconds):
    plan = balanced([Profile(seconds, 2 * seconds, 10, 10)] * (n_each * n_stages), n_stages, 0)
    assert sizes(plan) == [n_each] * n_stages and plan.n_in_flight == n_stages
    assert plan.seconds == pytest.approx(3 * seconds * n_each) and (plan.slowest, plan.number) == ("stage", 0)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 7, 1e-5])
def test_equal_sums_tie_wherever_they_stand(value):
    assert sizes(balanced([Profile(value, value, 0, 0)] * 7, 3, 0)) == [1, 3, 3], "no rounding decides; the earliest cut does"


def test_a_heavy_layer_stands_alone_and_is_the_bottleneck():
    plan = balanced(layers(1, 1, 10, 1, 1), 3, 0)
    assert sizes(plan) == [2, 1, 2] and plan.seconds == 10
    assert plan.sentence == "stage 1 (layer 3 of 5, on 1 rank) is the slowest: 10 s of compute per microbatch"


def test_a_slow_link_moves_the_cut_and_is_named_where_it_cannot():
    profiles = [p._replace(activation_nbytes=a) for p, a in zip(layers(2, 2, 2, 2), (100, 1000, 100, 0), strict=True)]
    assert sizes(balanced(profiles, 2, 1e6)) == [2, 2]
    assert sizes(balanced(profiles, 2, 100.0)) == [1, 3], "1000 bytes would take 20 s"
    plan = balanced(profiles, 2, 10.0)
    assert plan.sentence == "the link from stage 0 to stage 1 is the slowest: 20 s per microbatch for 100 bytes forward and as many back"
    assert (plan.slowest, plan.number, plan.seconds) == ("link", 0, 20.0)


def test_small_weights_on_a_slow_network_make_data_parallel_and_large_ones_a_pipeline():
    convolutions, dense = layers(1, 1, 1, 1, activation=10_000, parameter=1), layers(1, 1, 1, 1, activation=1, parameter=10_000)
    plan = planned(convolutions, 4, 100.0)
    assert plan.stages == (Stage(0, 4, 4),) and plan.seconds == 1.0 and plan.n_in_flight == 1
    plan = planned(dense, 4, 100.0)
    assert plan.stages == tuple(Stage(k, k + 1) for k in range(4)) and plan.seconds == 1.0 and plan.n_in_flight == 4
    plan = planned([*convolutions[:2], convolutions[2]._replace(activation_nbytes=100), dense[0]], 4, 5_000.0)
    assert plan.stages == (Stage(0, 3, 3), Stage(3, 4)) and plan.n_in_flight == 2, "as for a net of convolutions that ends in dense layers"


def test_a_free_network_makes_one_stage():
    assert planned(layers(3, 1, 2, activation=9, parameter=9), 4, 0).stages == (Stage(0, 3, 4),)


def test_a_sum_over_replicas_is_named():
    plan = planned(layers(1, parameter=100), 2, 10.0)
    assert plan.seconds == 4 * 100 / (2 * 2 * 10.0)
    assert plan.sentence == "stage 0 (layer 1 of 1, on 2 ranks) is the slowest: 10 s per microbatch for the sum of 100 bytes of gradients"


def test_empty_stages_stand_behind_the_first_so_that_both_ends_have_layers():
    plan = balanced(layers(1, 2, 3, activation=10), 5, 10.0)
    assert plan.stages == (Stage(0, 1), Stage(1, 1), Stage(1, 1), Stage(1, 2), Stage(2, 3))
    assert plan.seconds == 3 and plan.number == 4
    alone = balanced(layers(1, activation=10), 3, 10.0)
    assert alone.stages == (Stage(0, 1), Stage(1, 1), Stage(1, 1))
    assert (alone.slowest, alone.seconds) == ("link", 2.0), "the output goes on to the last stage, where the loss is"


def test_an_empty_stage_is_named_as_one():
    assert priced(layers(0), (Stage(0, 0), Stage(0, 1)), 0).sentence == "stage 0 (no layers, on 1 rank) is the slowest: 0 s of compute per microbatch"


def test_memory_moves_the_cut_and_how_many_are_in_flight_is_the_schedules():
    profiles = layers(1, 1, 1, 1, activation=100)
    assert sizes(balanced(profiles, 2, 0, memory_nbytes=400)) == [2, 2]
    assert sizes(balanced(profiles, 2, 0, memory_nbytes=300)) == [1, 3], "stage 0 holds two microbatches, stage 1 one"
    assert sizes(balanced(profiles, 2, 0, 800, lambda stage: 4)) == [2, 2]
    with pytest.raises(UserError, match="4 layers on 2 ranks need 800 bytes on the fullest rank, a rank has 300; use more ranks"):
        balanced(profiles, 2, 0, 300, lambda stage: 4)


def test_weight_versions_are_part_of_a_plan_s_memory():
    profiles = layers(1, 1, 1, 1, activation=1, parameter=100)
    fast = planned(profiles, 4, 100.0)
    assert sizes(fast) == [1, 1, 1, 1], "stage 0 holds 4 versions, the gradient and 4 activations: 504 bytes"
    assert planned(profiles, 4, 100.0, 504) == fast
    limited = planned(profiles, 4, 100.0, 503)
    assert limited.seconds > fast.seconds and limited.n_in_flight < 4


@pytest.mark.parametrize(("replicas", "turns"), [(1, [0, 0, 0, 0, 0, 0]), (2, [0, 1, 0, 1, 0, 1]), (4, [0, 1, 2, 3, 0, 1])])
def test_minibatches_go_round_the_replicas(replicas, turns):
    assert [route(b, replicas) for b in range(6)] == turns


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_partition_by_hand_is_read_as_it_was_written(counts):
    stages = by_hand(" , ".join(map(str, counts)), sum(counts), len(counts))
    assert [s.hi - s.lo for s in stages] == counts and stages[0].lo == 0 and all(s.replicas == 1 for s in stages)
    assert all(a.hi == b.lo for a, b in pairwise(stages))


def test_a_partition_by_hand_may_begin_and_end_empty():
    stages = by_hand("0,2,0", 2, 3)
    assert stages == (Stage(0, 0), Stage(0, 2), Stage(2, 2))
    plan = priced(layers(1, 1, activation=30), stages, 10.0)
    assert (plan.slowest, plan.number, plan.seconds) == ("link", 1, 6.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("3,2,3", "--partition 3,2,3: its layers add up to 8, the net has 9; give numbers that add up to 9"),
        ("3,2,5", "--partition 3,2,5: its layers add up to 10, the net has 9; give numbers that add up to 9"),
        ("5,4", "--partition 5,4: has 2 number(s), there are 3 stages; give one for each, joined by commas"),
        ("3,2,2,2", "--partition 3,2,2,2: has 4 number(s), there are 3 stages; give one for each, joined by commas"),
        ("3,-1,7", "--partition 3,-1,7: '-1' is negative; give 0 for a stage without layers"),
        ("3,two,4", "--partition 3,two,4: 'two' is not a number of layers; give whole numbers from 0 up, as 3,2,4"),
        ("3,2.0,4", "--partition 3,2.0,4: '2.0' is not a number of layers; give whole numbers from 0 up, as 3,2,4"),
        ("3,,6", "--partition 3,,6: '' is not a number of layers; give whole numbers from 0 up, as 3,2,4"),
        ("", "--partition : '' is not a number of layers; give whole numbers from 0 up, as 3,2,4"),
    ],
)
def test_what_is_no_partition_is_one_line(text, says):
    with pytest.raises(UserError) as error:
        by_hand(text, 9, 3)
    assert str(error.value) == says


def test_a_number_that_python_refuses_to_read_is_no_number():
    with pytest.raises(UserError, match="is not a number of layers"):
        by_hand("9" * 5000, 9, 1)


@pytest.mark.parametrize("plan", [balanced, planned])
@pytest.mark.parametrize(
    ("profiles", "n", "bandwidth", "says"),
    [
        ([], 2, 1.0, "stages: the net has 0 layers, a cut needs 1; give a net with layers"),
        (layers(1), 0, 1.0, "stages: 0 are none; give 1 or more"),
        (layers(1), 2, -1.0, "stages: bytes_per_second -1.0 is not a number from 0 up; give one"),
        (layers(1), 2, math.nan, "stages: bytes_per_second nan is not a number from 0 up; give one"),
        ([*layers(1), Profile(1, -2.0, 0, 0)], 2, 1.0, "profile: layer 2: backward_seconds -2.0 is not a number from 0 up; measure it again"),
        ([Profile(1, 1, math.inf, 0)], 2, 1.0, "profile: layer 1: activation_nbytes inf is not a number from 0 up; measure it again"),
    ],
)
def test_what_cannot_be_cut_is_one_line(plan, profiles, n, bandwidth, says):
    with pytest.raises(UserError) as error:
        plan(profiles, n, bandwidth)
    assert str(error.value) == says


def test_a_hundred_layers_on_sixteen_ranks_are_planned_at_once():
    random_ = random.Random(6)
    profiles = [Profile(random_.random(), random_.random(), random_.randint(0, 10**6), random_.randint(0, 10**7)) for _ in range(100)]
    plan = planned(profiles, 16, 1e7)
    assert sum(s.replicas for s in plan.stages) == 16 and plan.stages[-1].hi == 100
    assert plan.seconds <= min(balanced(profiles, 16, 1e7).seconds, priced(profiles, [Stage(0, 100, 16)], 1e7).seconds)
