"""End the whole job, soon and with one message, when one rank cannot go on.

    exception on one rank    traceback once, of DeviceFailed one line, `[rank 3/8]` before it, with its place on a grid, if there is one; Abort(1)
    UserError on all ranks   one line from rank 0; every rank leaves through Finalize with code 2
    UserError on one rank    the same line from that rank after GRACE_SECONDS; Abort(2)
    SIGTERM, SIGINT, SIGUSR1 Terminated(143, 130 or 138), a SystemExit: `finally` blocks run; one line from rank 0, then the others are aborted
    SIGUSR2                  all threads' stacks on stderr; the rank goes on
    a wait that hangs        `watchdog`: one report of who waits for whom; Abort(1)

When several ranks fail at one moment, only the first of each host prints: it binds an abstract Unix socket that bears the job's name,
which the kernel grants once and forgets with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from mpidml.core.current_wait import MAIN, Call, Wait
from mpidml.core.errors import DeviceFailed, UserError, WaitTimeout
from mpidml.runtime import launcher_daemon, segment_files, signals, start_limit
from mpidml.runtime.host_table import N_SEATS, SEATS
from mpidml.runtime.launch import world_from_environment
from mpidml.runtime.signals import GRACE_SECONDS, TELL_SECONDS, Signals, Terminated
from mpidml.runtime.watchdog import LIMIT_SECONDS, Watchdog

if TYPE_CHECKING:
    from mpi4py import MPI

FINALIZE_SECONDS = 300.0

_end: _End | None = None
_limits: list[list[float]] = []
"""Of waits, those that hold; the last one counts."""


def install(comm: MPI.Intracomm, keeps_limits: bool = False) -> None:
    """Take over uncaught exceptions (of all threads) and the signals SIGTERM, SIGINT, SIGUSR1 and SIGUSR2. Collective on comm, main thread only.

    `keeps_limits`: the program is one command, whose limit of waits holds up to its end. A second call changes nothing.
    """
    global _end
    if _end is not None:
        return
    end = _end = _End(comm, keeps_limits)
    segment_files.unname(comm)
    end.take_over()
    show_stacks_on_request()


def limit_waits(seconds: float) -> contextlib.ExitStack:
    """Let no wait of this process take longer from now on, until what is returned is left or closed: then the limit before counts again."""
    limit, until = [seconds], contextlib.ExitStack()
    _limits.append(limit)
    until.callback(_lift, limit)
    _apply_limit()
    return until


def _lift(limit: list[float]) -> None:
    if _end is not None and _end.keeps_limits:
        return
    _limits[:] = [each for each in _limits if each is not limit]
    _apply_limit()


def _apply_limit() -> None:
    if _end is not None and _end.watchdog is not None:
        _end.watchdog.limit(_limits[-1][0] if _limits else LIMIT_SECONDS)


def call(place: str) -> None:
    """Name this rank's place in reports from now on; "" for none."""
    if _end is not None:
        _end.where = f"[{' '.join(filter(None, [f'rank {_end.comm.rank}/{_end.comm.size}', place]))}]"


def show_stacks_on_request() -> None:
    """Print the stacks of all threads to stderr on a crash and on SIGUSR2; works inside a blocked MPI call."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)


class _End:
    """How one rank ends. Its barriers are on communicators of their own, so that they meet no message of the job; Abort is on the given one.

    `together` is for ranks that all have an error, `last` for those that all come to their end: a rank of one kind is not to be taken for the other.
    """

    def __init__(self, comm: MPI.Intracomm, keeps_limits: bool) -> None:
        self.comm, self.keeps_limits = comm, keeps_limits
        self.where = f"[rank {comm.rank}/{comm.size}]"
        self.signals: Signals | None = None
        self.mark: socket.socket | None = None
        self.telling = threading.Lock()  # one thread tells, once
        self.job = f"{os.getpid()}"
        self.watchdog = Watchdog(self.now, lambda: self.where) if comm.size > 1 else None
        with MAIN.on(Wait(lambda: f"the start of all {comm.size} ranks", time.monotonic(), Call(0, 0, range(comm.size)))):
            self.together, self.last = comm.Dup(), comm.Dup()
            self.job = comm.bcast(os.urandom(8).hex())
            self.key = int(self.job, 16) | 1
            self.seat = SEATS.take(self.key)  # where the others see that this rank has come to its end
            if self.watchdog is not None:
                from mpi4py import MPI

                host = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
                self.watchdog.attach(host, comm, self.job)
                host.Free()

    @property
    def code(self) -> int:
        """Return that of the signal that ends this rank, 0 while there is none."""
        return self.signals.code if self.signals is not None else 0

    def take_over(self) -> None:
        """Take signals, exceptions and the end of the program (main thread only)."""
        self.signals = Signals(alone=self.watchdog is None, leads=self.comm.rank == 0)
        sys.excepthook, threading.excepthook = self.of_main_thread, self.of_thread
        told = sys.unraisablehook  # a signal while the interpreter waits for its threads is no error of theirs
        sys.unraisablehook = lambda args: None if isinstance(args.exc_value, Terminated) else told(args)
        atexit.register(self.at_exit)
        os.register_at_fork(before=self.signals.hold, after_in_parent=self.signals.go_on, after_in_child=self.in_child)

    def in_child(self) -> None:
        """Let a forked process, which is no rank, end as if this module were not here."""
        if sys.excepthook == self.of_main_thread:
            sys.excepthook = sys.__excepthook__
        if threading.excepthook == self.of_thread:
            threading.excepthook = threading.__excepthook__
        atexit.unregister(self.at_exit)
        if self.signals is not None:
            self.signals.forget()

    def of_main_thread(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """End by an uncaught exception of the main thread (sys.excepthook); one that arose while a signal ended this rank is no news."""
        if self.code and self.comm.size > 1:
            self.abort(self.code)
        if self.code:
            raise SystemExit(self.code)
        if self.comm.size == 1:
            if isinstance(error, UserError | DeviceFailed):
                _say(f"mpidml: {error}\n")
                raise SystemExit(2 if isinstance(error, UserError) else 1)
            _say(_text(kind, error, trace))
        elif isinstance(error, UserError):
            self.of_user_error(error)
        elif isinstance(error, DeviceFailed):
            self.now(f"mpidml: {self.where} {error}\n")
        else:
            others = self.watchdog.whereabouts() if isinstance(error, WaitTimeout) and self.watchdog is not None else ""
            self.now(f"{self.where} {kind.__name__}: {error}\n{others}{_text(kind, error, trace)}")

    def of_thread(self, args: threading.ExceptHookArgs) -> None:
        """End by an uncaught exception of another thread: its work is missing, so no rank can go on."""
        if isinstance(args.exc_value, SystemExit):
            return
        name = args.thread.name if args.thread else "a thread"
        where = self.where if self.comm.size > 1 else "[thread]"
        self.now(f"{where} {args.exc_type.__name__} in {name}: {args.exc_value}\n{_text(args.exc_type, args.exc_value, args.exc_traceback)}")

    def of_user_error(self, error: UserError) -> NoReturn:
        """Leave with code 2: together if every rank does, else by Abort, so that an error on one rank is neither lost nor waited for."""
        if self.comm.rank == 0 and self.claim():
            _say(f"mpidml: {error}\n")
        everyone = self.together.Ibarrier()
        end = time.monotonic() + GRACE_SECONDS
        while not everyone.Test():
            if time.monotonic() > end:
                if self.comm.rank and self.claim():
                    _say(f"mpidml: {self.where} {error}\n")
                    time.sleep(TELL_SECONDS)
                self.abort(2)
            time.sleep(0.001)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun --kill-on-bad-exit sends it to all for the first that has ended
        raise SystemExit(2)

    def now(self, text: str) -> None:
        """Print `text` unless another rank of this host printed its own, or another thread of this rank does, and abort all ranks with code 1."""
        if not self.telling.acquire(blocking=False):
            time.sleep(2 * GRACE_SECONDS)
            os._exit(1)
        if self.claim():
            if self.watchdog is not None:
                self.watchdog.fails()
            _say(text)
            if self.comm.size > 1:
                time.sleep(0.2)  # the mark dies with this rank: ranks that fail at the same moment must find it taken
        else:
            time.sleep(GRACE_SECONDS)  # the first one's Abort ends this rank here
        if self.comm.size == 1:
            os._exit(1)  # also out of a thread, while the main thread is blocked
        self.abort(1)

    def abort(self, code: int) -> NoReturn:
        """End all ranks with `code` and never return.

        MPICH's Abort on COMM_WORLD may return before its launcher kills this rank. Where a rank left by itself at that moment (as Abort on a
        duplicate does), hydra was seen to report 9, the signal of its cleaning up, instead of `code`; so this rank stays to be killed.
        Over several hosts the launcher may wait for one that is cut off; then its daemon here is ended later.
        """
        from mpi4py import MPI

        if MPI.Is_finalized():  # all ranks have come to their end
            os._exit(code)
        quiet = 2
        with contextlib.suppress(OSError):
            quiet = os.open(os.devnull, os.O_WRONLY)
        faulthandler.dump_traceback_later(2 * GRACE_SECONDS, exit=True, file=quiet)  # should Abort itself hang, and keep the interpreter to itself
        if world_from_environment(os.environ).local_size < self.comm.size:
            with contextlib.suppress(OSError):
                launcher_daemon.end_later()
        self.comm.Abort(code)
        time.sleep(GRACE_SECONDS)
        os._exit(code)

    def claim(self) -> bool:
        """Return True for the first caller of the job on this host, and for that rank ever after; for all where it cannot be known, as without descriptors."""
        if self.mark is not None:
            return True
        try:
            mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                mark.bind(f"\0mpidml-{self.job}")
            except OSError:
                mark.close()
                raise
            self.mark = mark
        except OSError as error:
            return error.errno != errno.EADDRINUSE
        return True

    def at_exit(self) -> None:
        """Meet all ranks and end MPI, where nothing could be told of one that is missing; after a signal abort, as the others would never come."""
        from mpi4py import MPI

        if self.watchdog is None:  # one rank
            if self.code:
                _say(signals.line(self.code))
            signals.leave()
            return
        if MPI.Is_finalized():
            return
        if self.code:
            sys.stdout.flush()
            if self.comm.rank == 0 and not self.watchdog.another_failed:
                _say(signals.line(self.code))
            time.sleep(TELL_SECONDS)  # the end of another rank takes rank 0 along, which tells
            self.abort(self.code)
        try:
            self.meet_at_the_end()
        except Terminated:  # raised here it would be told as an error of this function
            self.abort(self.code)
        if _ends_mpi():
            with start_limit.counted(FINALIZE_SECONDS):
                MPI.Finalize()
            signals.leave()

    def meet_at_the_end(self) -> None:
        """Wait for all ranks' programs to end (Collective)."""
        assert self.watchdog is not None
        SEATS.numbers[self.seat] = 1
        self.watchdog.leaves()
        everyone = self.last.Ibarrier()
        call, known = Call(self.key, 1, range(self.comm.size)), self.seat < N_SEATS - 1
        with MAIN.on(Wait(lambda: "the end of all ranks' programs", time.monotonic(), call, limited=known)):
            while not everyone.Test():
                time.sleep(0.005)


def _ends_mpi() -> bool:
    """Whether this interpreter is to end MPI: not where the program says no, or is another one, linked with MPI, that only has Python in it."""
    import mpi4py

    return bool(mpi4py.rc.initialize and mpi4py.rc.finalize is not False) and not hasattr(ctypes.CDLL(None), "MPI_Finalize")


def _text(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str:
    return "".join(traceback.format_exception(kind, error, trace))


def _say(text: str) -> None:
    """Write `text` in one piece: launchers interleave what several ranks write in pieces."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()
