"""Hold the progress thread to its promise: it changes who calls MPI and when, and no bit and no byte of what is summed."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from mpidml.collectives.base import FOLDER, Collective, Sum, make_collective
from mpidml.core import plugins
from mpidml.core.errors import UserError, WaitTimeout
from mpidml.core.job import Job
from mpidml.core.variants import alone
from mpidml.runtime import progress_thread
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.progress_thread import ByHand, ProgressThread, check_progress, pays
from mpidml.runtime.stepping import Stepper
from mpidml.strategies.data_parallel import DataParallel
from tests.strategies.test_identities import SMALL
from tests.training import trained

SUMS = [name for name in plugins.names(FOLDER) if plugins.load(FOLDER, name).exact]
JOB = SMALL.with_values({"strategy": "data_parallel", "bucket": 512, "wait_limit": 20.0}, "test")
MOST_NAPS = 3000
FEW_NAPS = 50


class NeverTests(ProgressThread):
    """Broken: looks, and moves nothing."""

    def _turn(self):
        self.n_tests += len(self.sums)


class DropsAnEnd(ProgressThread):
    """Broken: takes a sum for ended that has only been tested."""

    def _turn(self):
        super()._turn()
        self.sums.clear()


def summed_meanwhile(comm, progress, name, per_host=0, most_naps=MOST_NAPS, apart=False):
    """Begin a sum, and sleep until the thread has ended it; tell on every rank whether all had it before any main thread called MPI again.

    `apart`: the others begin when rank 0's thread has tested, in vain.
    """
    counted = CountedComm(comm, per_host)
    collective: Collective = make_collective(name, counted)
    buffer = collective.allocate(300_000, np.float64)
    total = collective.plan(buffer)
    buffer[:] = np.arange(buffer.size) + comm.rank
    if not apart or comm.rank:
        comm.Barrier()
    progress.start(total)
    if apart and not comm.rank:
        for _ in range(MOST_NAPS):
            with progress.lock:
                if progress.n_tests:
                    break
            time.sleep(1e-3)
        comm.Barrier()
    for _ in range(most_naps):
        if not progress.sums:
            break
        time.sleep(1e-3)
    expected = comm.size * np.arange(buffer.size) + comm.size * (comm.size - 1) / 2
    ended = not progress.sums and bool((buffer == expected).all())
    found = all(comm.allgather(ended))  # this calls MPI
    progress.take_back()
    total.wait(20)
    assert (buffer == expected).all()
    comm.Barrier()
    progress.stop()
    total.free()
    collective.free()
    counted.free()
    return found


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("per_host", [0, 2])
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_ends_while_all_main_threads_sleep(comm, name, per_host):
    if name == "shared" and per_host and comm.size > 2:
        return
    assert summed_meanwhile(comm, ProgressThread(), name, per_host)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("broken", [NeverTests, DropsAnEnd])
def test_the_check_catches_a_thread_that_does_not_test_to_the_end(comm, broken):
    assert summed_meanwhile(comm, ProgressThread(), "ring", apart=True)
    assert not summed_meanwhile(comm, broken(), "ring", most_naps=FEW_NAPS, apart=True)


def exchanged(comm, progress, name):
    """Sum five buffers three times, with tests in between; return their bits, and the messages and bytes that this rank has sent."""
    counted = CountedComm(comm)
    collective = make_collective(name, counted)
    memory = collective.allocate(5000, np.float32)
    sums = [collective.plan(memory[lo : lo + 1000]) for lo in range(0, 5000, 1000)]
    before, found = (counted.n_sent, counted.nbytes_sent), []
    for step in range(3):
        memory[:] = np.random.default_rng([comm.rank, step]).standard_normal(5000)
        for each in sums:
            progress.start(each)
            for other in sums:
                if other is each:
                    break
                progress.test(other)
        progress.take_back()
        for each in sums:
            each.wait(20)
        found.append(memory.tobytes())
    sent = counted.n_sent - before[0], counted.nbytes_sent - before[1]
    comm.Barrier()
    for each in sums:
        each.free()
    collective.free()
    counted.free()
    return found, sent


@pytest.mark.mpi
@pytest.mark.parametrize("name", [name for name in SUMS if name != "auto"])
def test_sums_have_the_same_bits_messages_and_bytes(comm, name):
    progress = ProgressThread(nap=lambda seconds: None)
    with_thread = exchanged(comm, progress, name)
    comm.Barrier()
    progress.stop()
    assert with_thread == exchanged(comm, ByHand(), name)


CODES = [{"compress": code, "transport": "mpi"} for code in ("two_bit", "top_k:0.1", "int8")] + [{"compress": "one_bit"}]


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("per_host", [0, 2])
@pytest.mark.parametrize("way", [*({"collective": name} for name in SUMS if name not in ("auto", "ordered")), *CODES], ids=str)
def test_training_gives_the_bits_of_training_without_it(comm, way, per_host):
    n_hosts = -(-comm.size // per_host) if per_host else 1
    if comm.size == 1 or (way.get("collective") == "shared" and n_hosts > 1):
        return
    if way == {"compress": "one_bit"} and n_hosts == 1:
        return  # inside a host no codes are sent: values are summed by what was fastest at that moment, in an order of its own
    with_thread, values = trained(comm, JOB, per_host, progress_thread="on", **way)
    without, other_values = trained(comm, JOB, per_host, progress_thread="off", **way)
    assert values.tobytes() == other_values.tobytes()
    assert with_thread["model_sha256"] == without["model_sha256"] and with_thread["final_loss"] == without["final_loss"]
    assert "progress_thread_tests" not in without and min(with_thread["progress_thread_tests"]) >= 0
    assert len(with_thread["progress_thread_tests"]) == comm.size


@pytest.mark.mpi(min_size=2)
def test_the_thread_tests_while_a_rank_computes(comm, monkeypatch):
    report = Stepper._report

    def takes_long(self, lo, hi):
        report(self, lo, hi)
        for _ in range(MOST_NAPS):
            if self.progress.n_tests or not self.progress.sums:
                break
            time.sleep(1e-3)

    monkeypatch.setattr(Stepper, "_report", takes_long)
    summary, _ = trained(comm, JOB, collective="ring", progress_thread="on", target="0.99")
    assert min(summary["progress_thread_tests"]) > 0
    assert [thread.name for thread in threading.enumerate()].count("mpidml-progress") == 0  # it ends with the run


class Watched(Sum):
    """Counts how often two threads were in it at once; it is there after so many tests."""

    def __init__(self, n_tests=10**9):
        self.n_left, self.inside, self.n_clashes, self.n_tests = n_tests, 0, 0, 0

    def start(self):
        self._in()

    def test(self):
        self._in()
        self.n_left -= 1
        return self.n_left <= 0

    def _in(self):
        self.inside += 1
        time.sleep(2e-5)  # let the other thread come
        self.n_clashes += self.inside > 1
        self.inside -= 1
        self.n_tests += 1


class NoLock:
    """Broken: keeps nobody out."""

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass

    def acquire(self, blocking=True):
        return True

    def release(self):
        pass


def clashes(progress, n_tests=200, most_times=20_000):
    """Start, test and take back over and over while the thread makes its tests; return how often two threads were in the sum at once."""
    total = Watched()
    for _ in range(most_times):
        if progress.n_tests >= n_tests:
            break
        progress.start(total)
        progress.test(total)
        progress.test(total)
        progress.take_back()
        before = total.n_tests
        assert progress.sums == []
        total.test()  # as a wait does, by the main thread alone
        assert total.n_tests == before + 1 or isinstance(progress.lock, NoLock)
    assert progress.n_tests >= n_tests
    progress.stop()
    return total.n_clashes


def test_no_two_threads_are_in_a_sum_at_once():
    assert clashes(ProgressThread(nap=lambda seconds: None)) == 0


def test_the_check_catches_a_thread_without_a_lock():
    progress = ProgressThread(nap=lambda seconds: None)
    progress.lock = NoLock()
    assert clashes(progress) > 0


class Fails(Sum):
    """Cannot go on."""

    def start(self):
        pass

    def test(self):
        raise ValueError("a request broke")


@pytest.mark.parametrize("call", ["start", "test", "take_back"])
def test_what_goes_wrong_in_the_thread_is_raised_in_the_main_thread_once(call):
    progress = ProgressThread()
    progress.start(Fails())
    while progress.error is None:
        time.sleep(1e-3)
    with pytest.raises(ValueError, match="a request broke"):
        progress.take_back() if call == "take_back" else getattr(progress, call)(Watched())
    progress.take_back()
    progress.start(late := Watched(n_tests=20))  # the thread goes on
    while progress.sums:
        time.sleep(1e-3)
    assert late.n_left <= 0
    progress.stop()


def test_a_wait_has_its_limit_and_is_of_the_main_thread_alone():
    progress, total = ProgressThread(), Watched()
    progress.start(total)
    progress.take_back()
    before = progress.n_tests
    with pytest.raises(WaitTimeout, match=r"the limit is 0\.05 s"):
        total.wait(0.05)
    assert progress.n_tests == before and total.n_clashes == 0
    progress.stop()


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_stops_computing_leaves_its_thread_asleep(comm, monkeypatch):
    threads = []
    make = progress_thread.ProgressThread
    monkeypatch.setattr(progress_thread, "ProgressThread", lambda: threads.append(make()) or threads[-1])

    def breaks(self, lo, hi):
        original(self, lo, hi)
        raise FloatingPointError("not finite")

    original = Stepper._report
    monkeypatch.setattr(Stepper, "_report", breaks)
    with pytest.raises(FloatingPointError, match="not finite"):
        trained(comm, JOB, collective="mpi", progress_thread="on")
    assert threads[0].sums == [] and not threads[0].wake.is_set()
    threads[0].stop()


def test_it_pays_between_hosts_with_a_free_core_alone():
    assert pays(2, 3, 2) and pays(5, 2, 1)
    assert not pays(1, 64, 1) and not pays(2, 2, 2) and not pays(2, 1, 4)


def test_a_thread_that_would_do_nothing_or_may_not_call_is_refused(monkeypatch):
    for size, sums_meanwhile, what in ((1, True, "on one rank"), (2, False, "after the last kernel")):
        with pytest.raises(UserError, match=f"--progress-thread on: does nothing .*{what}"):
            check_progress("on", size, sums_meanwhile)
        check_progress("auto", size, sums_meanwhile)
        check_progress("off", size, sums_meanwhile)
    monkeypatch.setattr(progress_thread, "thread_multiple", lambda: False)
    with pytest.raises(UserError, match="one thread only; unset MPI4PY_RC_THREAD_LEVEL"):
        check_progress("on", 2, True)
    check_progress("auto", 2, True)
    assert alone(JOB.with_values({"progress_thread": "on"}, "test")).progress_thread == "auto"


@pytest.mark.mpi
def test_where_nothing_is_summed_meanwhile_it_is_an_error_line(comm):
    for strategy, what in (("parameter_server", "whose servers sum"), ("averaging", "which sums no gradients")):
        with pytest.raises(UserError, match=f"--progress-thread on: does nothing under --strategy {strategy}, {what}"):
            trained(comm, SMALL, strategy=strategy, progress_thread="on")
    counted = CountedComm(comm)
    with pytest.raises(UserError, match="--progress-thread on: does nothing"):
        DataParallel(JOB.with_values({"collective": "ordered", "bucket": Job.bucket, "progress_thread": "on"}, "test"), counted)
    counted.free()
