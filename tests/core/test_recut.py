"""What is said of a better cut comes true: at the costs that stages really had, and told only where it is worth a word."""

import random
from itertools import accumulate, pairwise

import pytest

from mpidml.core import recut
from mpidml.core.balance import Profile, Stage, balanced, by_hand, priced
from mpidml.core.recut import better, scaled, sentence


def layers(*seconds):
    return [Profile(s / 3, s * 2 / 3, 0, 0) for s in seconds]


def stages(*counts):
    return [Stage(lo, hi) for lo, hi in pairwise(accumulate(counts, initial=0))]


def test_it_names_the_slowest_stage_and_what_another_cut_would_bring():
    took = [0.0009, 0.0021, 0.0010]
    found = sentence(layers(0.9, 0.9, 1.2, 1.0), stages(1, 2, 1), took, [1.0] * 3)
    assert found == "stage 1 (layers 2 to 3) is the slowest: 2.1 ms per microbatch; --partition 2,1,1 would bring it to 1.8 ms (1.2 times as fast)"


@pytest.mark.parametrize("counts", [(2, 2), (1, 3)])
def test_nothing_is_said_of_a_cut_that_is_about_the_best(counts):
    took = [sum((1.0, 1.0, 1.0, 1.03)[s.lo : s.hi]) for s in stages(*counts)]
    assert bool(sentence(layers(1, 1, 1, 1), stages(*counts), took, [1.0, 1.0])) == (counts == (1, 3))


def test_the_slowest_is_named_where_no_cut_helps():
    """One layer takes longer than all others together, so that it is the slowest stage in any cut."""
    found = sentence(layers(0.1, 5.0), stages(1, 1), [0.0001, 0.005], [1.0, 1.0])
    assert found == "stage 1 (layer 2) is the slowest: 5 ms per microbatch; no other cut would be much faster"


def test_a_slow_rank_is_told_from_slow_layers():
    """Of equal layers, each stage has two; the first rank is three times as slow."""
    _, best = better(layers(*[1] * 8), stages(4, 4), [12.0, 4.0], [1 / 3, 1.0])
    assert [s.hi - s.lo for s in best.stages] == [2, 6] and best.seconds == pytest.approx(6.0)
    _, best = better(layers(*[1] * 8), stages(4, 4), [12.0, 4.0], [1.0, 1.0])
    assert [s.hi - s.lo for s in best.stages] == [3, 5] and best.seconds == pytest.approx(9.0), "by layers that cost three times as much"


def test_a_cut_that_evens_out_stages_and_slows_a_rank_that_has_several_is_not_told():
    """Stages 0 and 2 share a rank, 1 and 3 the other: each takes 6 together, and 5 and 7 by the cut that shortens the slowest stage from 5 to 4."""
    costs, took = layers(1, 1, 1, 1, 4, 4), [1.0, 2.0, 5.0, 4.0]
    assert "no other cut" in sentence(costs, stages(1, 2, 2, 1), took, [1.0] * 4, 2)
    assert "--partition 1,3,1,1 would bring it to 4,000 ms" in sentence(costs, stages(1, 2, 2, 1), took, [1.0] * 4), "stages alone are looked at"
    assert "--partition 1,1,2,2 would" in sentence(layers(*[1] * 6), stages(1, 1, 3, 1), [1.0, 1.0, 3.0, 1.0], [1.0] * 4, 2), "the slowest rank gains, too"


def agrees(sentence_of, seed):
    """Tell in how many draws what is promised is what the cut takes, as is the slowest stage; all stages took what their true costs say."""
    random_, n = random.Random(seed), 0
    for _ in range(100):
        true = [random_.uniform(0.5, 2) for _ in range(6)]
        speeds = [random_.choice([0.5, 1.0]) for _ in range(3)]
        edges = sorted(random_.sample(range(1, 6), 2))
        cut = by_hand(f"{edges[0]},{edges[1] - edges[0]},{6 - edges[1]}", 6, 3)
        took = [sum(true[s.lo : s.hi]) / speed for s, speed in zip(cut, speeds, strict=True)]
        found = sentence_of([Profile(s, 0, 0, 0) for s in true], cut, took, speeds)
        best = balanced([Profile(s, 0, 0, 0) for s in true], 3, 0.0, speeds=speeds)
        if max(took) > recut.WORTH * best.seconds:
            n += found is not None and found[0] == took.index(max(took)) and found[1].seconds == pytest.approx(best.seconds)
        else:
            n += found is None
    return n


def test_what_is_promised_is_the_best_that_there_is():
    assert agrees(better, 1) == 100


@pytest.mark.parametrize("broken", [lambda p, c, t, s: better(p, c, t, [1.0] * 3), lambda p, c, t, s: better(p, c, [1.0] * 3, s)])
def test_the_check_catches_other_speeds_and_other_seconds(broken):
    assert agrees(broken, 2) < 90


def test_stages_take_what_they_took_whatever_the_profile_says():
    took, speeds, cut = [4.0, 0.0, 9.0], [0.5, 1.0, 2.0], stages(2, 0, 3)
    found = scaled([*layers(1, 3), *layers(0, 0, 0)], cut, took, speeds)
    assert [p.forward_seconds + p.backward_seconds for p in found] == pytest.approx([0.5, 1.5, 6, 6, 6])
    assert priced(found, cut, 0.0, speeds).seconds == pytest.approx(9.0)
