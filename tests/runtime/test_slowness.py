"""A rank that is slowed down on purpose sleeps for what it computed, no more and no less, however badly a sleep keeps its time."""

import pytest

from mpidml.core.slowdown import Slowdown
from mpidml.runtime import slowness
from mpidml.runtime.slowness import Slowness


class Time:
    """A clock that stands still but for what is done; sleeps take 60 us too long."""

    def __init__(self, monkeypatch):
        self.now = self.slept = 0.0
        monkeypatch.setattr(slowness, "clock_now", lambda: self.now)
        monkeypatch.setattr(slowness.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.slept += seconds + 60e-6
        self.now += seconds + 60e-6


def run(time, slow, n=50):
    """Compute 2 ms in two halves with a sum of 5 ms between them, and wait 7 ms after each."""
    for clock in range(n):
        slow.begin(clock)
        time.now += 1e-3
        slow.pause()
        time.now += 5e-3
        slow.resume()
        time.now += 1e-3
        slow.end()
        time.now += 7e-3
        slow.pause()  # a sum while rows are scored


@pytest.mark.parametrize(("rank", "factor"), [(0, 2.0), (1, 0.0)])
def test_it_sleeps_for_its_computes_alone(monkeypatch, rank, factor):
    time = Time(monkeypatch)
    run(time, Slowness(Slowdown("permanent:3", 2, 0), rank))
    assert time.slept == pytest.approx(factor * 50 * 2e-3, abs=120e-6)


def test_nothing_is_slowed_down_unless_asked(monkeypatch):
    time = Time(monkeypatch)
    run(time, Slowness(None, 0))
    assert time.slept == 0.0


@pytest.mark.parametrize("broken", ["resume", "end"])
def test_the_check_catches_sums_and_waits_that_are_slept_for(monkeypatch, broken):
    time = Time(monkeypatch)
    monkeypatch.setattr(Slowness, broken, lambda self: None)
    run(time, Slowness(Slowdown("permanent:3", 2, 0), 0))
    assert time.slept > 1.5 * 2 * 50 * 2e-3
