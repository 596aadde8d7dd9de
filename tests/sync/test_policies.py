"""Each policy's one comparison, as its paper has it, and what it lets a worker do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core import plugins
from mpidml.core.clocks import Clocks
from mpidml.core.errors import UserError
from mpidml.sync.asp import Asp
from mpidml.sync.base import Tuning
from mpidml.sync.bsp import Bsp
from mpidml.sync.ssp import Ssp
from mpidml.sync.warmup import Warmup

RACE = st.lists(st.integers(0, 2), max_size=60)


def reads_of(policy, race):
    """Staleness of each read that is served while workers ask in the order `race`; each ends its clock after its read."""
    clocks, staleness = Clocks(range(3)), []
    for worker in race:
        clock = clocks.completed[worker]
        if clocks.reached >= policy.oldest_readable(clock, 0, clocks):
            staleness.append(clock - clocks.reached)
            clocks.tick(worker)
    return staleness


@given(RACE, st.integers(0, 4))
def test_no_read_is_staler_than_the_policy_allows(race, s):
    assert max(reads_of(Bsp(), race), default=0) <= 0
    assert max(reads_of(Ssp(s), race), default=0) <= s
    assert len(reads_of(Asp(), race)) == len(race), "asp never waits"


@pytest.mark.parametrize("s", range(4))
def test_the_bound_is_reached_and_not_passed_when_one_worker_runs_alone(s):
    assert reads_of(Ssp(s), [0] * 10) == list(range(s + 1))
    assert reads_of(Bsp(), [0] * 10) == [0]
    assert reads_of(Asp(), [0] * 10) == list(range(10))


def test_ssp_0_reads_like_bsp_but_only_bsp_holds_deltas_back():
    assert [Ssp(0).oldest_readable(c) for c in range(9)] == [Bsp().oldest_readable(c) for c in range(9)]
    assert (Ssp(0).commit, Asp().commit, Bsp().commit) == ("arrival", "arrival", "clock")


@given(RACE, st.integers(0, 6), st.integers(0, 4))
def test_a_warm_up_is_bsp_at_first_and_ssp_at_last(race, n, s):
    policy = Warmup(n, s)
    oldest = [policy.oldest_readable(c) for c in range(n + s + 9)]
    assert oldest[: n + 1] == list(range(n + 1)), "no stale read while it lasts"
    assert oldest[n + s :] == [Ssp(s).oldest_readable(c) for c in range(n + s, n + s + 9)]
    assert [c - o for c, o in enumerate(oldest)] == [0] * (n + 1) + list(range(1, s + 1)) + [s] * 8, "one clock of staleness more a clock"
    assert max(reads_of(policy, race), default=0) <= s


def test_a_warm_up_of_no_clocks_is_ssp_from_the_first_stale_clock_on():
    assert reads_of(Warmup(0, 2), [0] * 9) == reads_of(Ssp(2), [0] * 9) == [0, 1, 2]


def test_what_depends_on_timing_alone_does_not_claim_to_repeat():
    assert Bsp.repeatable and Ssp.repeatable and not Asp.repeatable


def test_the_rate_is_divided_and_the_memory_shortened_by_one_and_the_staleness():
    assert [Ssp().tuning(s) for s in (0, 1, 3)] == [Tuning(1, 1), Tuning(1 / 2, 2), Tuning(1 / 4, 4)]


@pytest.mark.parametrize(
    "text", ["ssp:-1", "ssp:1.5", "ssp:true", "ssp:inf", "ssp:staleness=x", "bsp:1", "asp:1", "ssp:1:2", "warmup:-1", "warmup:5:-1", "warmup:1.5"]
)
def test_a_staleness_that_cannot_be_is_one_line(text):
    with pytest.raises(UserError) as error:
        plugins.make("mpidml.sync", text)
    assert str(error.value).startswith(f"'{text}': ") and "\n" not in str(error.value)
