"""Carry arrays between two ranks that sleep while they wait: what is sent arrives, in order, whether a ring is heard or lost."""

import time
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.core.errors import WaitTimeout
from mpidml.runtime.bell import Bell
from mpidml.runtime.channel import Line, Waiting, open_channels
from mpidml.runtime.channel_here import ChannelHere, n_counts
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.meeting import Meeting

N_ITEMS, N_SLOTS, LATE_SECONDS = 12, 3, 2e-3
CARRIED = np.arange(N_ITEMS)[:, None, None] * np.ones((2, 5))


def carried(comm, memory, slow):
    """Send items from rank 0 to rank 1, one of which is `slow`; return on rank 1 what came, and on both how often a sleep ended by a ring (Collective)."""
    counted, waiting = CountedComm(comm), Waiting(20.0)
    rings = []
    wait = Bell.wait
    Bell.wait = lambda bell, seconds: rings.append(wait(bell, seconds)) or rings[-1]
    try:
        (channel,) = open_channels(counted, [Line(0, 1, 2, 5, N_SLOTS, "numbers")], np.dtype(np.float64), memory, waiting)
        found = []
        if counted.rank == 1:
            for item in range(N_SLOTS):
                channel.expect(item)
        counted.Barrier()
        for item in range(N_ITEMS if channel is not None else 0):
            if counted.rank == slow:
                time.sleep(LATE_SECONDS)
            if counted.rank == 0:
                channel.claim(item)
                channel.slots[item % N_SLOTS, :2] = item
                channel.send(item, 2)
            else:
                channel.take(item)
                found.append(channel.slots[item % N_SLOTS, :2].copy())
                channel.release(item)
                if item + N_SLOTS < N_ITEMS:
                    channel.expect(item + N_SLOTS)
        if channel is not None:
            channel.free()
        counted.Barrier()
        assert waiting.bell is None or channel is None, "who frees a channel lets go of the bell"
        waiting.close()
        counted.free()
    finally:
        Bell.wait = wait
    return found, sum(rings)


@pytest.mark.mpi(min_size=2)
@pytest.mark.openmpi
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("slow", [0, 1])
def test_items_arrive_in_order_and_who_sleeps_is_rung(comm, memory, slow):
    found, n_rings = carried(comm, memory, slow)
    if comm.rank == 1:
        assert np.array_equal(found, CARRIED)
    sleeps = comm.rank == 1 - slow
    assert n_rings > 0 if memory and sleeps else memory or n_rings == 0


@pytest.mark.mpi(min_size=2)
def test_a_ring_that_is_lost_costs_a_moment_and_nothing_else(comm, monkeypatch):
    monkeypatch.setattr(Waiting, "ring", lambda self, host_rank: None)
    found, n_rings = carried(comm, True, 0)
    assert n_rings == 0
    if comm.rank == 1:
        assert np.array_equal(found, CARRIED)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("memory", [True, False])
def test_inside_a_host_no_request_of_mpi_is_made(comm, memory, monkeypatch):
    made = []
    for name in ("Send_init", "Recv_init"):
        call = getattr(CountedComm, name)
        monkeypatch.setattr(CountedComm, name, lambda self, *given, call=call: (made.append(given), call(self, *given))[1])
    carried(comm, memory, 0)
    assert bool(made) == (not memory and comm.rank < 2)


def too_early(self, item):
    """Broken: reads or writes without waiting."""
    self.n[self.line.slot(item)] += not self.sends


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("name", "slow"), [("claim", 1), ("take", 0)])
def test_the_check_catches_a_side_that_does_not_wait(comm, name, slow, monkeypatch):
    monkeypatch.setattr(ChannelHere, name, too_early)
    monkeypatch.setattr(ChannelHere, "free", lambda self: self.waiting.close())
    found, _ = carried(comm, True, slow)
    if comm.rank == 1:
        assert not np.array_equal(found, CARRIED)


def taken(make=ChannelHere):
    """Take what the other side sends once this side has let a message of its own go on, three calls of MPI; return whether it came."""
    counts, calls = np.zeros(n_counts(1), np.int64), []

    def goes_on():
        calls.append(1)
        counts[0] = len(calls) == 3

    comm = SimpleNamespace(rank=1, host_rank_of=[0, 1], fence=lambda: None, mpi=SimpleNamespace(Iprobe=goes_on))
    channel = make(comm, Line(0, 1, 2, 5, 1, "numbers"), np.zeros((1, 2, 5)), counts, Waiting(0.5))
    try:
        channel.take(0)
    except WaitTimeout:
        return False
    return True


class CallsNobody(ChannelHere):
    """Broken: looks at memory alone."""

    def _until(self, ready, for_what):
        return self.waiting.until(ready, for_what, rung=True)


def test_who_waits_in_memory_lets_messages_go_on():
    assert taken()
    assert not taken(CallsNobody)


def met(comm, monkeypatch, all_here=Meeting.all_here):
    """Meet five times, each time with another rank late; return whether this rank ever went on before all had come, and how often it was rung."""
    monkeypatch.setattr(Meeting, "all_here", all_here)
    counted, waiting = CountedComm(comm), Waiting(20.0)
    rings = []
    wait = Bell.wait
    monkeypatch.setattr(Bell, "wait", lambda bell, seconds: rings.append(wait(bell, seconds)) or rings[-1])
    waiting.open(counted)
    came = counted.shared(counted.size, np.int64)
    n_sent = counted.n_sent
    early = False
    for time_number in range(5):
        if counted.rank == time_number % counted.size:
            time.sleep(LATE_SECONDS)
        came[counted.rank] = time_number + 1
        waiting.meet(counted, "the end of a test")
        early = early or bool((came <= time_number).any())
    assert counted.n_sent == n_sent
    counted.Barrier()
    waiting.close()
    counted.free()
    return early, sum(rings)


@pytest.mark.mpi(min_size=2)
@pytest.mark.openmpi
def test_ranks_of_a_host_meet_and_nobody_goes_on_before_the_last_has_come(comm, monkeypatch):
    early, n_rings = met(comm, monkeypatch)
    assert not early and n_rings > 0


@pytest.mark.mpi(min_size=2)
def test_a_meeting_that_waits_for_one_alone_would_be_seen(comm, monkeypatch):
    early, _ = met(comm, monkeypatch, lambda self: len(self.late()) < len(self.others) or comm.size == 2)
    assert any(comm.allgather(early))


class Together:
    """A host of `size` ranks in one process, as a meeting sees it."""

    def __init__(self, size):
        self.size, self.came = size, np.zeros(size * 8, np.int64)

    def of(self, rank):
        seen = SimpleNamespace(rank=rank, size=self.size, allgather=lambda own: list(range(self.size)), shared=lambda n, dtype: self.came)
        rung = []
        return Meeting(seen, rank, rung.append, lambda: None), rung


class RingsAtOnce(Meeting):
    """Broken: rings the others though somebody is missing."""

    def all_here(self):
        return True


class RingsNobody(Meeting):
    """Broken: lets all sleep."""

    def all_here(self):
        return False


def rung_well(size, made=Meeting):
    """Let all come three times in every order; return whether each time the last alone has rung, all others once."""
    well = True
    for order in permutations(range(size)):
        host = Together(size)
        meetings = [host.of(rank) for rank in range(size)]
        for meeting, _ in meetings:
            meeting.__class__ = made
        for _ in range(3):
            for rank in order:
                meetings[rank][0].come()
            said = [sorted(rung) for _, rung in meetings]
            well = well and said == [[other for other in range(size) if other != rank] if rank == order[-1] else [] for rank in range(size)]
            for _, rung in meetings:
                rung.clear()
    return well


@pytest.mark.parametrize("size", [2, 3, 4])
def test_who_comes_last_rings_each_of_the_others_once_and_nobody_else_rings(size):
    assert rung_well(size)


@pytest.mark.parametrize("broken", [RingsAtOnce, RingsNobody])
def test_the_check_catches_a_meeting_that_rings_too_often_or_never(broken):
    assert not rung_well(3, broken)
