"""Take the signals that end a process: its main thread unwinds, or, where it is blocked inside MPI, the process ends all the same.

    SIGTERM, SIGINT, SIGUSR1   -> the handler, in the main thread between two bytecodes     Terminated: `finally` blocks run
                               -> a byte to the watch, a thread, at once                    if the handler has not run in GRACE_SECONDS, the end

MPICH takes SIGUSR1 for itself when it starts, and drops it: a job that a batch system asks to end while it loads its data would go on.
Acts on its own handlers only: a handler that the program sets later stays the program's, and a forked child gets those of Python back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE_SECONDS = 2.0
TELL_SECONDS = 0.3  # a launcher that ends ranks at once may drop what it has not read
UNWIND_SECONDS = 20.0  # for `finally` blocks after a signal; Slurm kills 30 s after its SIGTERM


class Terminated(SystemExit):
    """A signal ends this process; raised in its main thread. Whoever takes a SystemExit for an answer must let this one pass."""


class Asked:
    """SIGTERM and SIGUSR1 that only ask; each of the two does so once. `goes_on` says what there is to say should a signal end this process while it is blocked."""

    def __init__(self, goes_on: Callable[[], str] | None) -> None:
        self.number, self.goes_on = 0, goes_on
        self.noted: Counter[int] = Counter()
        self.passed: Counter[int] = Counter()
        self.before: dict[int, Any] = {int(n): signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}
        for each in self.before:
            signal.signal(each, self.note)

    def note(self, received: int, frame: FrameType | None) -> None:
        """Take a signal for a question, and the next one of its number for an end."""
        self.number = received
        self.noted[received] += 1
        signal.signal(received, self.before[received])

    def passes(self, received: int) -> bool:
        """Whether a signal that the watch hears of is one that asks, which `note` has taken already or will take."""
        asks = signal.getsignal(received) == self.note or self.passed[received] < self.noted[received]
        self.passed[received] += asks
        return asks

    def late(self, received: int, frame: FrameType | None) -> None:
        """Drop a signal: a batch system sends one to each rank, host after host, and where this rank's is the last all have heard of it and have saved."""

    def ends(self) -> None:
        """Let signals do what they did before; but no SIGUSR1 that is still to come ends a job whose run is saved and about to be written, or requeued."""
        self.goes_on = None
        for each, handler in self.before.items():
            late = each == signal.SIGUSR1 and not self.noted[each] and getattr(handler, "__func__", None) is Signals.unwind
            signal.signal(each, self.late if late else handler)


_asked: Asked | None = None
"""The last one."""


@contextlib.contextmanager
def asked_to_end(goes_on: Callable[[], str] | None = None) -> Iterator[Callable[[], int]]:
    """Within this SIGTERM and SIGUSR1 only ask to end: yields a function that returns the signal's number, 0 while there was none.

    A second one ends as ever, and a first SIGUSR1 that comes afterwards nothing. Outside the main thread, where no signal arrives, nobody asks.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    asked = _asked = Asked(goes_on)
    try:
        yield lambda: asked.number
    finally:
        asked.ends()


def leave() -> None:
    """Drop every SIGUSR1 from now on, where it is ours: Python lets go of its handlers, then takes a while to end, and the default action would fail a job that is done."""
    if getattr(signal.getsignal(signal.SIGUSR1), "__func__", None) in (Signals.unwind, Asked.late):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def line(code: int) -> str:
    """Say which signal has ended the program; `code` is 128 + its number."""
    return f"mpidml: ended by {signal.Signals(code - 128).name}\n"


class Signals:
    """The handlers of signals that end, and the watch beside them. `code`: 128 + the signal that ends this process, 0 while there is none.

    `alone`: no other rank tells of a signal that this one is too blocked to tell of. `leads`: others leave it to this one to tell from where a run can go on.
    """

    def __init__(self, alone: bool = False, leads: bool = True) -> None:
        self.code, self.alone, self.leads, self.around_fork = 0, alone, leads, threading.local()
        for number in ENDING:
            if number != signal.SIGUSR1 or signal.getsignal(number) == signal.SIG_DFL:  # else it is the program's, which may have itself requeued by it
                signal.signal(number, self.unwind)
        reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="signal watch", daemon=True).start()

    def unwind(self, number: int, frame: FrameType | None) -> NoReturn:
        """Unwind the main thread; who comes after it takes the other ranks along."""
        self.code = 128 + number
        raise Terminated(self.code)

    def hold(self) -> None:
        """Let signals wait while this thread forks: the child's would reach the parent's watch, which reads the same socket, as long as it has not forgotten it."""
        self.around_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    def go_on(self) -> None:
        """Let them come again."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self.around_fork.mask)

    def forget(self) -> None:
        """Give a forked child what Python begins with."""
        signal.set_wakeup_fd(-1)
        for number in ENDING:
            if signal.getsignal(number) in (self.unwind, _asked and _asked.note, _asked and _asked.late):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self.go_on()

    def _watch(self, reader: socket.socket) -> None:
        """End this process where its main thread cannot: Python runs signal handlers between bytecodes only, never inside a blocked MPI call."""
        while received := reader.recv(1):
            number = received[0]
            if _asked is not None and _asked.passes(number):
                continue
            if number in ENDING and signal.getsignal(number) == self.unwind:
                time.sleep(GRACE_SECONDS)
                if self.code:  # the handler ran, the main thread is unwinding
                    time.sleep(UNWIND_SECONDS)
                elif _asked is not None and _asked.goes_on is not None:
                    _write(1, _asked.goes_on() + "\n")
                if self.alone:
                    _write(2, line(128 + number))
                else:
                    time.sleep(TELL_SECONDS * (1 if self.leads else 2))  # the end of this rank takes those along that have something to tell
                os._exit(128 + number)


def _write(to: int, text: str) -> None:
    """Write to a file that can take it: by no lock that the main thread holds, and to no pipe that is full."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [to], [], 0)[1]:
            os.write(to, text.encode())
