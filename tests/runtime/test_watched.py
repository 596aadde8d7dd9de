"""Blocking calls are numbered alike on all ranks of a communicator, and compared before anything moves where that is asked for."""

import os
from typing import ClassVar

import numpy as np
import pytest

from mpidml.collectives import base
from mpidml.collectives.base import make_collective
from mpidml.core.current_wait import MAIN, Call, CurrentWait, Wait
from mpidml.core.errors import Mismatch, UserError
from mpidml.core.same_sums import compare_starts
from mpidml.runtime import threads
from mpidml.runtime.channel import Waiting
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.credited import Credited, Words
from mpidml.runtime.driver import Driver
from mpidml.runtime.host_table import SEATS
from mpidml.runtime.launch import world_from_environment
from mpidml.runtime.watched import Watched, compares
from mpidml.runtime.waves import Exchange


@pytest.fixture
def counted(comm):
    """Give a communicator of all ranks of a test."""
    found = CountedComm(comm)
    yield found
    found.free()


@pytest.fixture
def compared(comm, monkeypatch):
    """Give one whose ranks compare what they call."""
    monkeypatch.setenv("MPIDML_DEBUG", "collectives")
    found = CountedComm(comm)
    yield found
    found.free()


def calls(comm):
    """Call everything once."""
    comm.Barrier()
    comm.bcast(comm.rank, comm.size - 1)
    comm.gather(comm.rank)
    comm.Bcast(np.zeros(3))
    comm.host.Barrier()
    comm.unshare(comm.shared(5, np.float64))
    part = comm.split(comm.rank % 2)
    part.Barrier()
    part.free()
    return comm.allgather(comm.rank)


@pytest.mark.mpi
def test_calls_are_numbered_alike_on_the_ranks_of_a_communicator_and_nowhere_else(counted):
    before = counted.number
    calls(counted)
    keys = counted.mpi.allgather((counted.key, counted.number))
    assert len(set(keys)) == 1
    if counted.size > 1:
        assert counted.number == before + 6  # those of the host and of the part are theirs
        assert SEATS.numbers[counted.seat] == counted.number
    again = CountedComm(counted.mpi)
    assert again.key not in {counted.key, counted.host.key, again.host.key}
    again.free()


@pytest.mark.mpi
def test_a_call_is_a_wait_and_leaves_none_behind(counted):
    seen = []
    around = MAIN.now
    assert counted.watched("a call", lambda value: (seen.append(MAIN.now), value)[1], 5) == 5
    with pytest.raises(ZeroDivisionError):
        counted.watched("a call that fails", lambda: 1 / 0)
    assert MAIN.now is around
    if counted.size > 1:
        assert seen[0].call == Call(counted.key, counted.number - 1, tuple(range(counted.size)))
        assert seen[0].what() == f"a call {counted.number - 1} of all ranks"


@pytest.mark.mpi
def test_what_is_called_alike_passes_the_comparison_and_costs_no_counted_byte(compared, comm):
    plain = CountedComm(comm)
    plain.checks = None
    sent = []
    for each in (compared, plain):
        before = each.nbytes_sent
        assert calls(each) == list(range(comm.size))
        sent.append(each.nbytes_sent - before)
    assert sent[0] == sent[1]
    collective = make_collective("tree", compared)
    total = np.full(7, compared.rank + 1.0)
    halves, whole = collective.halves(np.ones(7), np.ones(7)), collective.plan(total)
    for each in (whole, halves.reduce, halves.gather):
        each.start()
        each.wait(30)
        each.free()
    assert total.tolist() == [comm.size * (comm.size + 1) / 2] * 7
    collective.free()
    plain.free()


@pytest.mark.mpi(min_size=2)
def test_ranks_that_call_different_things_are_told_both_places_on_every_rank(compared):
    last = compared.rank == compared.size - 1

    def one_way():
        compared.Barrier()

    def another_way():
        compared.allgather(3)

    with pytest.raises(Mismatch, match=rf"rank 0 comes to Barrier at .*\(one_way\), rank {compared.size - 1} comes to allgather at .*\(another_way\)"):
        (another_way if last else one_way)()
    with pytest.raises(Mismatch, match=r"bcast from 0 at .* bcast from 1 at"):
        compared.bcast(1, int(last))
    with pytest.raises(Mismatch, match=r"shared memory of 3 x float32 .* shared memory of 4 x float32"):
        compared.shared(3 + last, np.float32)
    with pytest.raises(Mismatch, match=r"Bcast of 24 bytes from 0 at .* Bcast of 16 bytes from 0 at"):
        compared.Bcast(np.zeros(3 - last))


@pytest.mark.mpi(min_size=2)
def test_ranks_that_start_different_sums_are_told(compared):
    collective = make_collective("ring", compared)
    sums = [collective.plan(np.ones(n)) for n in (4, 6)]
    with pytest.raises(Mismatch, match=r"number 1, of 4 x float64 at .* number 2, of 6 x float64 at"):
        sums[int(compared.rank == compared.size - 1)].start()
    for each in sums:
        each.start()
        each.wait(30)
        each.free()


@pytest.mark.mpi(min_size=2)
def test_nothing_is_compared_where_nobody_asks(counted):
    """The other side of the test above: what differs passes unseen."""
    assert counted.checks is None
    counted.compare(f"rank {counted.rank}")


class Mute:
    """A communicator of two ranks for comparisons: what is waited for while they compare is noted, and both say the same."""

    def __init__(self):
        self.waits = []

    def Iallgather(self, own, found):
        found[:] = own
        return self

    def Ibarrier(self):
        return self

    def Test(self):
        self.waits.append(MAIN.now)
        return True


@pytest.fixture
def mute():
    found = object.__new__(Watched)
    found.checks, found.size, found.rank, found.ranks, found.number, found.name = Mute(), 2, 0, (0, 1), 4, "all ranks"
    return found


def test_a_comparison_is_a_wait_for_all_ranks_of_the_communicator(mute):
    mute.compare("the sum")
    (wait,) = mute.checks.waits
    assert wait.call == Call(0, 0, (0, 1)) and wait.limited and wait.what() == "the sum of all ranks, which is compared first"
    assert MAIN.now is None


def test_a_sum_that_one_algorithm_leaves_to_another_is_compared_once(mute, monkeypatch):
    compared = []
    monkeypatch.setattr(mute, "compare", compared.append, raising=False)

    class Leaves(base.Collective):
        def open(self, comm):
            self.inner = base.Collective()
            self.inner.plan = lambda buffer: base.Done()
            compare_starts(self.inner, comm)

        def plan(self, buffer):
            return self.inner.plan(buffer)

    outer = Leaves()
    outer.open(mute)
    compare_starts(outer, mute)
    outer.plan(np.zeros(3)).start()
    assert compared == ["the sum that was planned as number 1, of 3 x float64"]


def test_what_a_pipelines_ranks_meet_for_is_compared_while_they_serve_each_other(mute):
    served = []
    waiting = Waiting(60)
    waiting.meanwhile = lambda: served.append(1)
    mute.mpi = Mute()
    ready = iter((False, False, True))
    mute.checks.Test = lambda: next(ready)
    waiting.meet(mute, "the end of a phase")
    assert served, "a rank that serves nobody while it waits may be what all wait for"
    mute.checks.Test = lambda: True
    mute.checks.Iallgather = lambda own, found: (found.__setitem__(0, own), mute.checks)[1]  # the other says nothing
    with pytest.raises(Mismatch, match="the end of a phase"):
        waiting.meet(mute, "the end of a phase")
    with pytest.raises(Mismatch, match="the norm"):
        waiting.gather(mute, 1.0, "the norm")


class Slow:
    """A request whose end is waited for: by then the watchdog has to know."""

    seen: ClassVar[list] = []

    def Wait(self):
        self.seen.append(MAIN.now)

    def Cancel(self):
        pass

    Free = Cancel


def test_the_last_messages_of_a_run_are_waits(mute, monkeypatch):
    monkeypatch.setattr(Slow, "seen", [])
    words, credited, driver = (object.__new__(of) for of in (Words, Credited, Driver))
    words.comm = credited.comm = driver.comm = mute
    words.going, words.request, driver.receive = [(Slow(), None)], Slow(), Slow()
    credited.credits, credited.freeing = {1: [Slow()]}, {1: [Slow()]}
    monkeypatch.setattr(Exchange, "free", lambda self: None)
    for each in (words.free, credited.free, driver.end):
        each()
    assert len(Slow.seen) == 5 and all(wait is not None and wait.call.ranks == (0, 1) for wait in Slow.seen)


def test_whether_a_wait_may_spin_follows_the_launchers_ranks_on_this_host():
    srun = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    assert base.spin_seconds(world_from_environment(srun).local_size, 3) == 0 < base.spin_seconds(world_from_environment(srun).local_size, 4)
    here = base.spin_seconds(world_from_environment(os.environ).local_size, int(min(threads.given(os.environ), threads.quota())))
    assert here == base.SPIN_SECONDS


def test_what_the_environment_cannot_ask_for_is_refused(monkeypatch):
    monkeypatch.setenv("MPIDML_DEBUG", "colectives")
    with pytest.raises(UserError, match="MPIDML_DEBUG=colectives: there is no such check; known: collectives"):
        compares()


def test_waits_lie_within_each_other():
    own = CurrentWait()
    outer, inner = Wait("outer", 1.0), Wait("inner", 2.0)
    around = own.begin(outer)
    with own.on(inner):
        assert own.now is inner
    assert own.now is outer
    own.end(around)
    assert own.now is None
