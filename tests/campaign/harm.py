"""Run `python -m mpidml` with harm to one rank, in place of it: `mpirun -n N python -m tests.campaign.harm train ...`.

The environment says what is done, on which rank, and where: a function of the program that this rank alone gets in a wrapping. Nothing else is other than in
a run without harm. Each rank notes its process, and the harm its time, in a file.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

VARIABLE = "MPIDML_HARM"
MESSAGE = "harm on purpose"
PLACES = {  # name -> module, function, and whether harm is done before it or after it
    "data": ("mpidml.strategies.base", "load", "after"),
    "network": ("mpidml.strategies.base", "build_net", "after"),
    "gradient": ("mpidml.runtime.training", "Training.compute", "before"),
    "member": ("mpidml.runtime.group_training", "GroupTraining.help", "before"),
    "served": ("mpidml.ps.shard", "Shard.handle", "before"),
    "program": ("mpidml.runtime.staged_training", "GridStepper._step", "before"),
    "score": ("mpidml.runtime.scoring", "score", "before"),
    "pieces": ("mpidml.runtime.checkpoint", "_write_pieces", "after"),
    "commit": ("mpidml.runtime.checkpoint", "sync", "before"),
    "model": ("mpidml.runtime.outputs", "_sort_header", "before"),  # the file is written under its passing name
    "gathered": ("mpidml.strategies.base", "bring", "after"),
}
LATER_SECONDS = 0.005
TOLD_TAG = 7
"""What a rank tells of its measurements, which no role waits for."""


def note(log: str, *words: object) -> None:
    """Add a line to the log, in one piece."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{' '.join(map(str, words))}\n".encode())
    os.close(descriptor)


class Harm:
    """What is done when the place is come to for the `at`-th time; a slow rank is slow from then on."""

    def __init__(self, fault: str, at: int, seconds: float, once: bool, log: str) -> None:
        self.fault, self.at, self.seconds, self.log, self.n = fault, at, seconds, log, 0
        self.link = Link(seconds if fault == "delay" else math.inf, once, self.done) if fault in ("delay", "lost") else None

    def met(self) -> None:
        """Come to the place."""
        self.n += 1
        if self.n < self.at:
            return
        if self.n > self.at:
            if self.fault == "slow":
                time.sleep(LATER_SECONDS)
            return
        if self.link is not None:
            self.link.armed = True
            return
        self.done(-1)
        if self.fault == "exception":
            raise ArithmeticError(MESSAGE)
        if self.fault in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)
        time.sleep(self.seconds)

    def done(self, to: int) -> None:
        """Note the shared memory that has a name, the time of the harm, and the rank that a message does not reach."""
        with open("/proc/self/maps") as maps:
            for path in sorted({line.rstrip("\n").partition("/")[2] for line in maps if " /dev/shm/" in line and not line.endswith(" (deleted)\n")}):
                note(self.log, "memory", f"/{path}")
        note(self.log, "harm", time.monotonic(), to)

    def at_place(self, module: str, function: str, when: str) -> None:
        """Wrap a function."""
        *path, name = function.split(".")
        owner = functools.reduce(getattr, path, importlib.import_module(module))
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*given: Any, **named: Any) -> Any:
            if when == "before":
                self.met()
            found = real(*given, **named)
            if when == "after":
                self.met()
            return found

        setattr(owner, name, wrapped)


class Link:
    """The way from this rank to another: once it is `armed`, what is sent to the first rank that anything is sent to comes `seconds` later, in order, or never.

    `once`: of what is lost, one message of roles alone. `done(rank)` is told of the first.
    """

    def __init__(self, seconds: float, once: bool, done: Callable[[int], None]) -> None:
        self.seconds, self.once, self.done = seconds, once, done
        self.armed = self.over = False
        self.to = -1
        self.lock = threading.RLock()
        self.kept: list[Kept] = []

    def cut(self) -> None:
        """Take the place of what sends."""
        from mpidml.runtime.comm import CountedComm

        isend, send_init = CountedComm.Isend, CountedComm.Send_init
        CountedComm.Isend = lambda comm, buffer, dest, tag=0: self.send(comm, dest, tag, lambda: isend(comm, buffer, dest, tag))
        CountedComm.Send_init = lambda comm, buffer, dest, tag=0: Repeated(self, comm, dest, tag, send_init(comm, buffer, dest, tag))
        if self.once:
            from mpidml.runtime.driver import Driver

            send = Driver._send

            def sends(driver: Any, *given: Any) -> None:
                loses, self.armed = self.armed, False
                if loses:
                    self.over, self.to = True, given[2]
                    self.done(self.to)
                    with self.lock:
                        CountedComm.Isend, whole = (lambda *_: Nothing()), CountedComm.Isend
                        send(driver, *given)
                        CountedComm.Isend = whole
                    return
                send(driver, *given)

            Driver._send = sends

    def send(self, comm: Any, dest: int, tag: int, begin: Callable[[], Any]) -> Any:
        """Send, or keep what is to be sent."""
        with self.lock:
            if tag == TOLD_TAG or self.once or not (self.armed or self.kept):
                return begin()
            rank = world_rank(comm, dest)
            if self.armed and self.to < 0:
                self.to = rank
                self.done(rank)
                if self.seconds < math.inf:
                    threading.Timer(self.seconds, self.flush).start()
            if rank != self.to or self.over:
                return begin()
            if self.seconds == math.inf:
                return Nothing()
            self.kept.append(kept := Kept(begin))
            return kept

    def flush(self) -> None:
        """Send all that was kept, in its order."""
        with self.lock:
            self.over, self.armed = True, False
            for kept in self.kept:
                kept.begin()
            self.kept.clear()


class Nothing:
    """A request that seems to be done."""

    def Test(self) -> bool:
        return True

    def Wait(self) -> None:
        return


class Kept:
    """A request that begins later."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self.start, self.request, self.begun = begin, None, threading.Event()

    def begin(self) -> None:
        self.request = self.start()
        self.begun.set()

    def Test(self) -> bool:
        return self.begun.is_set() and (self.request is None or bool(self.request.Test()))

    def Wait(self) -> None:
        self.begun.wait()
        if self.request is not None:
            self.request.Wait()


class Repeated:
    """A persistent send over the link."""

    def __init__(self, link: Link, comm: Any, dest: int, tag: int, sending: Any) -> None:
        self.link, self.comm, self.dest, self.tag, self.sending = link, comm, dest, tag, sending
        self.request: Any = sending

    def Start(self) -> None:
        def begin() -> Any:
            self.sending.Start()
            return self.sending

        self.request = self.link.send(self.comm, self.dest, self.tag, begin)

    def Test(self) -> bool:
        return bool(self.request.Test())

    def Wait(self) -> None:
        self.request.Wait()

    def Free(self) -> None:
        self.sending.Free()


def world_rank(comm: Any, rank: int) -> int:
    """Return the number that a rank of `comm` has among all."""
    from mpi4py import MPI

    return int(MPI.Group.Translate_ranks(comm.mpi.group, [rank], MPI.COMM_WORLD.group)[0])


def main() -> None:
    """Do harm where this rank is the one, and run."""
    from mpidml.runtime import launch

    what = json.loads(os.environ[VARIABLE])
    rank, place = what.pop("rank"), what.pop("place")
    launch.budget_threads(os.environ)  # before NumPy is loaded
    own = launch.world_from_environment(os.environ).rank
    note(what["log"], "rank", own, os.getpid())
    if own == rank:
        harm = Harm(**what)
        harm.at_place(*PLACES[place])
        if harm.link is not None:
            harm.link.cut()
    from mpidml.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
