"""Shares follow speeds: work in their proportion, and nobody waits long."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core import shares as module
from mpidml.core.shares import Shares
from tests.changed import changed

ENDS_ALONE = changed(
    module, [("worker + round((size - n) * above[worker] / above[n])", "min(max(round(size * sum(self.parts[:worker])), worker), size - (n - worker))")]
)
"""A variant that keeps a sample for the first and the last worker alone."""
NO_LEAST = changed(module, [("worker + round((size - n) * above[worker] / above[n])", "round(size * sum(self.parts[:worker])) if worker < n else size")])
"""A variant that keeps none for anybody."""
EQUAL_REST = changed(module, [("max(size * part - 1, 0.0)", "1.0")])
BY_PARTS = changed(module, [("max(size * part - 1, 0.0)", "part")])
"""Variants that share the rest out equally, and by whole shares, which takes too much from large ones."""


def run(speeds_of, n_rounds=12, batch=120, learns=True, shares_of=Shares):
    """Run rounds on virtual clocks; return of the last one each worker's samples, and the largest share of time that one idles."""
    n = len(speeds_of(0))
    shares = shares_of(n)
    for k in range(n_rounds):
        samples = [shares.edge(batch, w + 1) - shares.edge(batch, w) for w in range(n)]
        assert sum(samples) == batch
        seconds = [count / speed for count, speed in zip(samples, speeds_of(k), strict=True)]
        if learns:
            shares.learn(samples, seconds)
    return samples, 1 - min(seconds) / max(seconds)


def test_three_to_one_speeds_get_three_to_one_work_and_hardly_idle():
    samples, idle = run(lambda k: (3.0, 1.0))
    assert samples[0] / samples[1] == pytest.approx(3, rel=0.1)
    assert idle < 0.1
    _, idle = run(lambda k: (3.0, 1.0), learns=False)  # the broken variant: equal shares
    assert idle > 0.6


def test_shares_follow_when_speeds_change_and_stay_when_they_only_tremble():
    samples, idle = run(lambda k: (3.0, 1.0) if k < 6 else (1.0, 3.0))
    assert samples[1] / samples[0] == pytest.approx(3, rel=0.1) and idle < 0.1
    noise = random.Random(0)
    shares = Shares(3)
    changes = sum(shares.learn([100] * 3, [1 + noise.uniform(-0.01, 0.01) for _ in range(3)]) for _ in range(50))
    assert changes == 0


def test_who_is_very_slow_keeps_a_share_and_who_did_nothing_teaches_nothing():
    shares = Shares(4)
    assert shares.learn([10] * 4, [1.0, 1.0, 1.0, 1e6])
    assert shares.parts[3] > 0.25 / 2, "one stall takes little"
    for _ in range(20):
        shares.learn([10] * 4, [1.0, 1.0, 1.0, 1e6])
    assert 0 < shares.parts[3] < 0.01 and sum(shares.parts) == pytest.approx(1)
    assert shares.edge(1000, 4) - shares.edge(1000, 3) >= 2
    assert shares.edge(8, 4) - shares.edge(8, 3) == 1, "or it could not be measured any more"
    assert not shares.learn([10, 0, 10, 10], [1.0] * 4)
    assert not shares.learn([10] * 4, [1.0, 0.0, 1.0, 1.0])


def faults(parts, size, shares_of=Shares):
    """Name what is wrong with how a batch is cut by `parts`."""
    n = len(parts)
    shares = shares_of(n)
    shares.parts = parts
    edges = [shares.edge(size, w) for w in range(n + 1)]
    counts = [hi - lo for lo, hi in itertools.pairwise(edges)]
    least = min(1, size // n)
    lifted = sum(max(least - size * part, 0.0) for part in parts)
    found = {"a gap"} if edges[0] or edges[-1] != size or min(counts) < 0 else set()
    found |= {"nothing"} if min(counts) < least else set()
    if size >= n:
        found |= {"too many"} if any(count > max(size * part, 1) + 1.001 for count, part in zip(counts, parts, strict=True)) else set()
        found |= {"too few"} if any(count < size * part - lifted - 1.001 for count, part in zip(counts, parts, strict=True)) else set()
        by_speed = sorted(zip(parts, counts, strict=True))
        found |= {"upside down"} if any(count > more + 1 for (_, count), (_, more) in itertools.combinations(by_speed, 2)) else set()
    return found


PARTS = st.lists(st.one_of(st.floats(1e-3, 1.0), st.sampled_from([1e-3, 1.0])), min_size=2, max_size=40).map(lambda found: [x / sum(found) for x in found])


@given(PARTS, st.integers(0, 300))
def test_each_worker_has_a_sample_where_there_are_enough_and_all_are_near_their_shares(parts, size):
    assert not faults(parts, size)


@pytest.mark.parametrize(
    ("variant", "parts", "size", "what"),
    [
        (ENDS_ALONE, [0.45, 0.05, 0.05, 0.45], 8, {"nothing"}),
        (NO_LEAST, [0.01, 0.495, 0.495], 8, {"nothing"}),
        (EQUAL_REST, [0.1, 0.9], 100, {"too many", "too few"}),
        (BY_PARTS, [0.9, *[0.1 / 9] * 9], 100, {"too few"}),
    ],
    ids=["the ends alone", "none at least", "equal rest", "by parts"],
)
def test_the_check_of_the_cut_catches_variants_of_it(variant, parts, size, what):
    assert not faults(parts, size) and what <= faults(parts, size, variant.Shares)


def test_who_was_slow_in_the_middle_gets_its_share_back():
    speeds = lambda k: (60.0, 1.0, 60.0) if k < 20 else (1.0, 1.0, 1.0)
    assert run(speeds, n_rounds=20, batch=64)[0][1] == 1
    samples, idle = run(speeds, n_rounds=40, batch=64)
    assert max(samples) - min(samples) <= 1 and idle < 0.1
    assert run(speeds, n_rounds=40, batch=64, shares_of=ENDS_ALONE.Shares)[0] == [32, 0, 32], "the broken variant: who computes nothing is never measured again"


@pytest.mark.parametrize("size", [0, 1, 3, 64, 1001])
def test_edges_cut_any_batch_without_a_gap(size):
    shares = Shares(5)
    shares.learn([5, 4, 3, 2, 1], [1.0] * 5)
    edges = [shares.edge(size, w) for w in range(6)]
    assert edges[0] == 0 and edges[-1] == size and edges == sorted(edges)
