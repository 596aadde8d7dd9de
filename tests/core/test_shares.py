"""Shares follow speeds: work in their proportion, and nobody waits long."""

import random

import pytest

from mpidml.core.shares import Shares


def run(speeds_of, n_rounds=12, batch=120, learns=True):
    """Run rounds on virtual clocks; return of the last one each worker's samples, and the largest share of time that one idles."""
    n = len(speeds_of(0))
    shares = Shares(n)
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


@pytest.mark.parametrize("size", [0, 1, 3, 64, 1001])
def test_edges_cut_any_batch_without_a_gap(size):
    shares = Shares(5)
    shares.learn([5, 4, 3, 2, 1], [1.0] * 5)
    edges = [shares.edge(size, w) for w in range(6)]
    assert edges[0] == 0 and edges[-1] == size and edges == sorted(edges)
