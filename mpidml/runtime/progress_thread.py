"""Keep sums over ranks going while this rank computes: a thread tests those that run, and sleeps in between.

    main      | kernel | kernel | kernel | kernel | wait        MPI moves nothing unless somebody calls it
    thread        test . . test . . test . . test               each 100 us, from the first `start` to `take_back`

Between those two the main thread calls MPI within `start` and `test` alone, which hold the lock that the thread tests under; before and after, the
thread sleeps until it is woken, and a wait is that of the main thread, with its limit.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from mpidml.collectives.base import Sum
from mpidml.core.errors import UserError
from mpidml.runtime.comm import CountedComm, thread_multiple
from mpidml.runtime.launch import THREAD_VARIABLES

NAP_SECONDS = 100e-6


class ByHand:
    """Let sums go on where the main thread tests them, and nowhere else."""

    n_tests: int | None = None
    """Tests that a thread has made; None where there is none."""

    def start(self, total: Sum) -> None:
        """Begin a sum."""
        total.start()

    def test(self, total: Sum) -> bool:
        """Let a sum that was begun go on without waiting; return whether it is known to be there."""
        return total.test()

    def take_back(self) -> None:
        """Leave all sums to the main thread: it may wait for them, and call MPI as it likes."""

    def stop(self) -> None:
        """End what runs besides the main thread."""


class ProgressThread(ByHand):
    """Test the sums that were begun from a thread of its own, too, until they are there or are taken back.

    What goes wrong in the thread is raised by the next call from the main thread. `nap(seconds)` is how the thread sleeps.
    """

    def __init__(self, nap: Callable[[float], Any] = time.sleep) -> None:
        self.lock, self.wake = threading.Lock(), threading.Event()
        self.nap, self.sums, self.closing = nap, list[Sum](), False
        self.error: BaseException | None = None
        self.n_tests: int = 0
        self.thread = threading.Thread(target=self._run, name="mpidml-progress", daemon=True)
        self.thread.start()

    def start(self, total: Sum) -> None:
        """Begin a sum, and hand it to the thread."""
        with self.lock:
            self._raise()
            total.start()
            self.sums.append(total)
            self.wake.set()

    def test(self, total: Sum) -> bool:
        """Let a sum go on; while the thread tests, which moves it no less, return at once."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            self._raise()
            return total.test()
        finally:
            self.lock.release()

    def take_back(self) -> None:
        """Take all sums from the thread, which sleeps until another is begun."""
        with self.lock:
            self._park()
            self._raise()

    def stop(self) -> None:
        """End the thread."""
        with self.lock:
            self._park()
            self.closing = True
            self.wake.set()
        self.thread.join()

    def _park(self) -> None:
        self.sums.clear()
        self.wake.clear()

    def _raise(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        while not self.closing:
            self.wake.wait()
            with self.lock:
                self._turn()
            self.nap(NAP_SECONDS)

    def _turn(self) -> None:
        """Test each sum once; keep those that are not there."""
        if self.closing:
            return
        try:
            self.n_tests += len(self.sums)
            self.sums[:] = [total for total in self.sums if not total.test()]
        except BaseException as error:  # the main thread's to raise
            self.error = error
            self.sums.clear()
        if not self.sums:
            self.wake.clear()


def pays(n_hosts: int, n_cores: int, n_busy: int) -> bool:
    """Tell whether a thread helps: between hosts, and where `n_busy` threads that compute leave one of this host's cores free."""
    return n_hosts > 1 and n_cores > n_busy


def check_progress(choice: str, size: int, sums_meanwhile: bool) -> None:
    """Refuse a thread that is asked for where nothing is summed while a rank computes, or where MPI takes calls from one thread only."""
    if choice == "on" and size == 1:
        raise UserError("--progress-thread on: does nothing on one rank, which sums with nobody; leave it out")
    if choice == "on" and not sums_meanwhile:
        raise UserError("--progress-thread on: does nothing where blocks are summed after the last kernel (ordered); leave it out")
    if choice == "on" and not thread_multiple():
        raise UserError("--progress-thread on: this MPI takes calls from one thread only; unset MPI4PY_RC_THREAD_LEVEL")


def make_progress(choice: str, comm: CountedComm, sums_meanwhile: bool) -> ByHand:
    """Return what keeps sums going: a thread if `choice` is on, or auto and it pays on this host (Collective on comm)."""
    if choice != "auto":
        return ProgressThread() if choice == "on" else ByHand()
    cores = set[int]().union(*comm.host.allgather(os.sched_getaffinity(0)))
    n_threads = max(int(os.environ[name]) if os.environ.get(name, "").isdecimal() else 1 for name in THREAD_VARIABLES)
    n_hosts = len(set(comm.allgather(comm.leader)))
    wanted = sums_meanwhile and thread_multiple() and pays(n_hosts, len(cores), comm.host.size * n_threads)
    return ProgressThread() if wanted else ByHand()
