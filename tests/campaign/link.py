"""Let what one rank sends to another come late, all of it and in its order, or never, as over a link that stalls or breaks."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

TOLD_TAG = 7
"""Of what a rank tells of its measurements (`runtime.telemetry`), which no role waits for."""


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
