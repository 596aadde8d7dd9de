"""The minimum that a tick maintains is the minimum that a search would find."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.clocks import ENDED, Clocks, TimedClocks
from mpidml.sync.ssp import Ssp

N = 4
EVENTS = st.lists(st.tuples(st.integers(0, N - 1), st.sampled_from(["tick", "tick", "tick", "end"])), max_size=60)
STRAGGLER_LEAVES = [(1, "tick"), (1, "tick"), (2, "tick"), (2, "tick"), (3, "tick"), (3, "tick"), (0, "end")]


def check_against_search(cls, events):
    clocks, completed = cls(range(N)), dict.fromkeys(range(N), 0)
    for worker, what in events:
        if worker not in completed:
            continue
        before = clocks.reached
        moved = getattr(clocks, what)(worker)
        if what == "tick":
            completed[worker] += 1
        else:
            del completed[worker]
        minimum = min(completed.values(), default=ENDED)
        assert clocks.reached == minimum
        assert moved == (minimum != before)
        assert {w: c for w, c in enumerate(clocks.completed) if c != ENDED} == completed
        if completed:
            assert clocks.slowest() == [w for w, c in sorted(completed.items()) if c == minimum]
        assert sum(clocks.behind.values()) == N and all(clocks.behind.values()), "one count a worker, no empty ones"


@given(EVENTS)
def test_reached_is_the_minimum_over_the_workers_that_have_not_ended(events):
    check_against_search(Clocks, events)


class EndsByOne(Clocks):
    """Takes for granted that the next clock is occupied."""

    def end(self, worker):
        old = self.completed[worker]
        moved = super().end(worker)
        if moved:
            self.reached = old + 1
        return moved


class NeverEnds(Clocks):
    def end(self, worker):
        self.completed[worker] = ENDED
        return False


@pytest.mark.parametrize("broken", [EndsByOne, NeverEnds])
def test_the_search_catches(broken):
    with pytest.raises(AssertionError):
        check_against_search(broken, STRAGGLER_LEAVES)


@given(st.integers(0, 3), st.lists(st.integers(0, N - 1), max_size=80))
def test_workers_that_ask_before_each_clock_lead_by_at_most_the_staleness_and_one(staleness, order):
    clocks, policy = Clocks(range(N)), Ssp(staleness)
    for worker in order:
        if clocks.reached >= policy.oldest_readable(clocks.completed[worker], worker, clocks):
            clocks.tick(worker)
            assert clocks.completed[worker] - clocks.reached <= staleness + 1


class OneTooFew(Clocks):
    def __init__(self, workers, needed):
        super().__init__(workers, needed - 1 if needed < N else needed)


def check_quorum(cls, order, needed):
    clocks, completed = cls(range(N), needed), [0] * N
    for worker in order:
        before = clocks.reached
        moved = clocks.tick(worker)
        completed[worker] += 1
        assert clocks.reached == sorted(completed, reverse=True)[needed - 1] and clocks.highest == max(completed)
        assert moved == (clocks.reached != before)


@given(st.lists(st.integers(0, N - 1), max_size=80), st.integers(1, N))
def test_a_clock_is_reached_when_as_many_as_needed_have_completed_it(order, needed):
    check_quorum(Clocks, order, needed)


def test_the_search_catches_a_quorum_that_is_too_small():
    with pytest.raises(AssertionError):
        check_quorum(OneTooFew, [0, 0, 1, 1, 2, 2, 3], 3)


@given(EVENTS)
def test_timed_clocks_count_alike_and_know_one_of_the_slowest(events):
    plain, timed, ended = Clocks(range(N)), TimedClocks(range(N)), set()
    for now, (worker, what) in enumerate(events, 1):
        if worker in ended:
            continue
        if what == "tick":
            assert plain.tick(worker) == timed.tick(worker, float(now))
            assert timed.last[worker] == now
        else:
            ended.add(worker)
            assert plain.end(worker) == timed.end(worker)
        assert (plain.reached, plain.completed) == (timed.reached, timed.completed)
        if len(ended) < N:
            assert timed.one_of_the_slowest() in plain.slowest()
