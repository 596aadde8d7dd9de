"""The report names the rank that the others wait for, and says so when there is none."""

from __future__ import annotations

import pytest

from mpidml.ps.waits import Waited
from mpidml.runtime import straggler

NAMES = ["server 0", "server 0", "server 1", "worker 0", "worker 1", "worker 2"]
RANK_OF = [0, 0, 1, 0, 1, 2]


def waits(seconds, first=100.0, last=109.0, longest=0.5, clock=7, times=3):
    return Waited(times, seconds, longest, clock, first, last)


def rows(of_rank):
    """Rows of a run of three colocated ranks: rank -> {role: Waited}."""
    found = []
    for rank, waited in of_rank.items():
        found += straggler.pairs(f"worker {rank}", rank, waited, NAMES, RANK_OF, 100.0)
    return found


def test_the_shards_of_a_server_are_one_and_the_own_rank_is_nobody_to_wait_for():
    found = rows({2: {0: waits(1.0, first=101), 1: waits(2.0, first=100.5, longest=0.9, clock=3), 5: waits(9.0)}})
    assert found == [
        {
            "rank": 2, "role": "worker 2", "for_rank": 0, "for_role": "server 0", "seconds": 3.0, "times": 6, "longest_seconds": 0.9,
            "longest_clock": 3, "first_seconds": 0.5, "last_seconds": 9.0,
        }
    ]  # fmt: skip


def test_a_rank_for_which_most_of_the_waiting_was_is_named_with_who_how_long_and_since_when():
    found = straggler.find(rows({0: {4: waits(3.0, first=100.2)}, 2: {4: waits(4.0), 3: waits(1.0)}}), 10.0, 3)
    assert found["rank"] == 1 and found["roles"] == ["worker 1"] and found["is_straggler"] and found["all_along"]
    assert found["seconds"] == 7.0 and found["share"] == pytest.approx(7 / 8)
    assert found["waiting"] == [{"rank": 2, "seconds": 4.0}, {"rank": 0, "seconds": 3.0}]
    text = straggler.sentence(found, 3)
    assert "straggler: rank 1 (worker 1) made others wait 7.00 s, 88% of all waiting (rank 2 4.00 s, rank 0 3.00 s), from 0.00 s to 9.00 s" in text
    assert "no bounded staleness gains anything" in text and "no bounded" not in straggler.sentence(found, None)


def test_waiting_that_is_spread_or_small_or_over_soon_is_not_blamed_on_one():
    spread = straggler.find(rows({0: {4: waits(3.0)}, 1: {5: waits(3.0)}, 2: {3: waits(3.0)}}), 10.0, 3)
    assert not spread["is_straggler"] and straggler.sentence(spread, 0).startswith("no straggler: of all waiting the most, 33%, was for rank ")
    assert not straggler.find(rows({0: {4: waits(1.0)}}), 10.0, 3)["is_straggler"], "3% of the time is nothing to name anybody for"
    brief = straggler.find(rows({0: {4: waits(3.0, first=104, last=106)}}), 10.0, 3)
    assert brief["is_straggler"] and not brief["all_along"] and "all along" not in straggler.sentence(brief, 3)
    assert straggler.find([], 10.0, 1) is None


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("servers", ["colocated", "1"])
def test_a_rank_slowed_down_for_good_is_the_one_that_the_summary_names(comm, servers):
    """The slow worker's compute is 30 times longer, so most waits are for it, whatever the machine does."""
    from mpidml.core.job import Job
    from mpidml.runtime.comm import CountedComm
    from mpidml.strategies.base import train

    counted = CountedComm(comm)
    job = Job(slowdown="permanent:30", sync="ssp:1", steps=30, hidden=(64,), batch=64, servers=servers, backend="numpy")
    found = train(job, counted, quiet=True, write=False)
    counted.free()
    most = found["most_waited_for"]
    slow = found["roles"].index(next(roles for roles in found["roles"] if "worker 0" in roles))
    assert most["rank"] == slow and most["is_straggler"], most
    assert all(row["for_rank"] != row["rank"] and row["seconds"] > 0 for row in found["waited_for"])


def test_of_two_workers_chance_gives_half_so_more_is_asked_for():
    two = straggler.find(rows({0: {4: waits(7.0)}, 1: {3: waits(3.0)}}), 10.0, 2)
    assert not two["is_straggler"] and two["share"] == pytest.approx(0.7)
    assert straggler.find(rows({0: {4: waits(7.0)}, 2: {3: waits(3.0)}}), 10.0, 3)["is_straggler"]


def test_where_staleness_would_have_gained_nobody_is_told_that_it_would_not():
    found = straggler.find(rows({0: {4: waits(3.0, first=100.2)}, 2: {4: waits(4.0), 3: waits(1.0)}}), 10.0, 3)
    assert "no bounded staleness gains anything" in straggler.sentence(found, 0, {"ssp:3": 1.01, "ssp:10": 1.03})
    assert "no bounded staleness" not in straggler.sentence(found, 0, {"ssp:3": 1.2, "ssp:10": 1.3})


def slow_for(begin, end, of_run=100.0, each=0.5):
    """A record of a run of 1 s clocks from 100.0 on: small waits at each, and of `each` between `begin` and `end`."""
    record = Waited()
    for clock in range(int(of_run)):
        now = 101.0 + clock
        record.add(clock, now - (each if begin <= clock < end else 0.001), now)
    return record


def test_when_it_was_is_where_most_of_the_waiting_was_and_so_is_whether_all_along(monkeypatch):
    a_while, always, one_early = rows({0: {4: slow_for(30, 70)}, 2: {4: slow_for(30, 70)}}), rows({0: {4: slow_for(0, 100)}}), rows({2: {4: slow_for(0, 3, each=0.1)}})
    found = straggler.find(a_while + one_early, 100.0, 3)
    assert found["is_straggler"] and not found["all_along"], "small waits, or few of one rank, are not since when it was slow"
    assert (found["first_seconds"], found["last_seconds"]) == pytest.approx((32, 68), abs=3)
    assert "all along" not in straggler.sentence(found, 0)
    found = straggler.find(always + one_early, 100.0, 3)
    assert found["is_straggler"] and found["all_along"] and "all along" in straggler.sentence(found, 0)
    monkeypatch.setattr(Waited, "middle", lambda self: (self.first, self.last))
    assert straggler.find(rows({0: {4: slow_for(30, 70)}}), 100.0, 3)["all_along"], "the first and the last wait of any length"


@pytest.mark.mpi(min_size=2)
def test_under_a_budget_nobody_is_told_to_give_less_work(comm):
    from mpidml.core.job import Job
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.summary import closing
    from mpidml.sim.what_if import BUDGETED
    from mpidml.strategies.base import train

    counted = CountedComm(comm)
    for budget in (1e6, 0.0):
        job = Job(sync="ssp:1", steps=15, hidden=(16,), batch=32, budget=budget, backend="numpy")
        found = train(job, counted, quiet=True, write=False)
        slow = straggler.find(rows({0: {4: slow_for(0, 100)}}), 100.0, 3)
        text = closing(found | {"most_waited_for": slow, "what_if": {}}, None, False)
        assert "straggler: rank 1" in text and (BUDGETED in text) == (budget > 0)
        assert ("give it less work" in text) == (budget == 0)
        assert bool(found["what_if"]) == (budget == 0)
    counted.free()
