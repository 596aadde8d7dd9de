"""Frames leave the switch of the emulated hosts when delay, rate and jitter say, in their order, and never through a link that is cut."""

from __future__ import annotations

import pytest

from tests.switch import MAC, QUEUE_NBYTES, Switch

SIZE = 1000


def to(host, size=SIZE):
    """Return a frame for a host; -1: for all."""
    return (b"\xff" * 6 if host < 0 else MAC + bytes([host + 1])).ljust(size, b"\0")


def switch(n=3, kind=Switch, **settings):
    made = kind(n)
    for what, value in settings.items():
        made.change(what, value)
    return made


def times(made):
    """Return when each frame leaves, in the order in which they do, and for whom."""
    found = []
    while made.due:
        now = made.due[0][0]
        found += [(now, target) for target, _ in made.give(now)]
    return found


def test_a_frame_takes_its_links_time_and_the_delay():
    made = switch(delay=0.001, rate=8e6)  # a millisecond for each frame
    for _ in range(3):
        made.take(0, to(1), now=5.0)
    assert times(made) == [(pytest.approx(5.002 + 0.001 * i), 1) for i in range(3)]


def test_two_that_send_to_one_share_its_link():
    made = switch(rate=8e6)
    for source in (0, 1):
        for _ in range(2):
            made.take(source, to(2), now=0.0)
    assert [now for now, _ in times(made)] == pytest.approx([0.001, 0.002, 0.003, 0.004])
    for source in (0, 1):
        made.take(source, to(1 - source), now=1.0)  # both ways at once
    assert [now for now, _ in times(made)] == pytest.approx([1.001, 1.001])


class Unordered(Switch):
    """Broken: a frame may overtake another."""

    def take(self, source, frame, now):
        self.taken_at = [0.0] * self.n
        super().take(source, frame, now)


def in_order(made):
    for number in range(50):
        made.take(0, to(1) + bytes([number]), now=number * 1e-4)
    return [frame[-1] for _, frame in made.give(10.0)] == list(range(50))


def test_jitter_delays_and_does_not_reorder():
    assert in_order(switch(delay=0.001, jitter=0.01))
    assert not in_order(switch(kind=Unordered, delay=0.001, jitter=0.01))


def test_nothing_passes_a_cut_link_not_even_what_was_on_its_way():
    made = switch(delay=0.001)
    made.take(0, to(1), now=0.0)
    made.change("cut", 1)
    made.take(0, to(1), now=0.0)
    made.take(1, to(2), now=0.0)
    made.take(0, to(2), now=0.0)
    assert times(made) == [(0.001, 2)] and made.n_lost == 3
    made.change("mend", 1)
    made.take(0, to(1), now=1.0)
    assert times(made) == [(1.001, 1)]


def test_a_frame_for_all_goes_to_all_others_and_one_for_nobody_to_none():
    made = switch()
    made.take(1, to(-1), now=0.0)
    assert times(made) == [(0.0, 0), (0.0, 2)]
    made.take(1, to(7), now=0.0)
    assert times(made) == []


def test_what_a_queue_does_not_hold_is_lost():
    made = switch(rate=8e6)
    n = QUEUE_NBYTES // SIZE
    for _ in range(n + 10):
        made.take(0, to(1), now=0.0)
    assert n <= len(made.due) <= n + 1 and made.n_lost == n + 10 - len(made.due)


def test_what_it_cannot_do_is_an_error():
    with pytest.raises(ValueError, match="there is no 'loss'"):
        switch(loss=0.1)
