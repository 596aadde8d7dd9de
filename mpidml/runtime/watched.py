"""Make each blocking call of a communicator a wait that the watchdog sees, numbered alike on all its ranks.

    rank 0    Barrier 1   allgather 2   ............ waits since 31 s for who has not come to 2
    rank 1    Barrier 1   bcast 2       ............ both ends of the mistake are named: what, which number, where in the user's code

MPIDML_DEBUG=collectives compares before each call what all ranks are about to call, on a communicator of its own, so that a difference is found
before anything moves; it costs a small allgather a call.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from mpidml.collectives import base
from mpidml.collectives.base import LEAST_NAP_SECONDS
from mpidml.core.current_wait import MAIN, Call, Wait
from mpidml.core.errors import Mismatch, UserError
from mpidml.runtime.host_table import SEATS
from mpidml.runtime.sites import caller, site

DEBUG = "MPIDML_DEBUG"
PRINT_NBYTES = 512
LONGEST_NAP_SECONDS = 5e-3

_n_made: dict[tuple[int, ...], int] = {}


def compares() -> bool:
    """Whether the environment asks for calls to be compared; UserError for what it cannot ask for."""
    wanted = os.environ.get(DEBUG, "")
    if wanted not in ("", "collectives"):
        raise UserError(f"{DEBUG}={wanted}: there is no such check; known: collectives")
    return bool(wanted)


class Watched:
    """The blocking calls of `mpi`, whose ranks in the job are `ranks`; `kind` tells its name from others. `free` lets the communicator go (both Collective)."""

    def __init__(self, mpi: Any, kind: str = "") -> None:
        self.mpi, self.rank, self.size = mpi, int(mpi.rank), int(mpi.size)
        self.ranks = ranks_of(mpi)
        _n_made[self.ranks] = n = _n_made.get(self.ranks, 0) + 1
        # Alike on all ranks of a communicator, since those make theirs in one order.
        self.key = int.from_bytes(hashlib.blake2b(f"{self.ranks} {n}".encode(), digest_size=8).digest()) | 1
        self.seat, self.number = SEATS.take(self.key), 0
        some = f"ranks {', '.join(map(str, self.ranks[:8]))}{' ...' * (self.size > 8)}"
        self.name = ("all ranks" if self.size == MPI.COMM_WORLD.size else some) + kind
        self.checks: Any = None
        if compares() and self.size > 1:
            self.checks = self.watched("the communicator for comparisons of", mpi.Dup)

    def watched(self, name: str, function: Callable[..., Any], *arguments: Any, alike: str = "") -> Any:
        """Return function(*arguments), a call that all ranks make; `alike`: what has to be the same on all of them, as a root (Collective on comm)."""
        if self.size == 1:
            return function(*arguments)
        self.number += 1
        number = self.number
        SEATS.numbers[self.seat] = number
        call = Call(self.key, number, self.ranks)
        if self.checks is not None:
            self.compare(f"{name} {alike}".strip(), call)
        around = MAIN.begin(Wait(lambda: f"{name} {number} of {self.name}", time.monotonic(), call))
        try:
            return function(*arguments)
        finally:
            MAIN.end(around)

    def compare(self, what: str, call: Call | None = None, patiently: Callable[[Callable[[], bool]], Any] | None = None) -> None:
        """Raise the same Mismatch on all ranks where they do not all say the same (Collective on comm); does nothing unless MPIDML_DEBUG asks for it.

        `call`: the numbered call that comes next, if it is one. `patiently(ready)` waits until `ready()`, where who waits has to serve others meanwhile.
        """
        if self.checks is None:
            return
        frame = sys._getframe(1)
        own = f"{what}\0{caller(frame)}\0{site(frame)}".encode(errors="replace")[:PRINT_NBYTES]
        found = np.zeros((self.size, PRINT_NBYTES), np.uint8)
        request = self.checks.Iallgather(np.frombuffer(own.ljust(PRINT_NBYTES, b"\0"), np.uint8), found)
        with MAIN.on(Wait(lambda: f"{what} of {self.name}, which is compared first", time.monotonic(), call or Call(0, 0, self.ranks))):
            (patiently or until)(request.Test)
        said = [bytes(row).rstrip(b"\0").decode(errors="replace").split("\0") for row in found]
        odd = next((r for r, each in enumerate(said) if each[:2] != said[0][:2]), 0)
        if odd:
            first, other = (f"rank {self.ranks[r]} comes to {said[r][0]} at {said[r][-1]}" for r in (0, odd))
            raise Mismatch(f"call {self.number} of {self.name}: {first}, {other}; let every rank make the same calls in one order")

    def Barrier(self) -> None:
        self.watched("Barrier", self._met, self.mpi.Barrier)  # a call of its own, so that another call in its place does not pass for it

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self.watched("bcast", self._met, self.mpi.bcast, value, root, alike=f"from {root}")

    def gather(self, value: Any, root: int = 0) -> Any:
        return self.watched("gather", self._met, self.mpi.gather, value, root, alike=f"to {root}")

    def allgather(self, value: Any) -> list[Any]:
        return list(self.watched("allgather", self._met, self.mpi.allgather, value))

    def _met(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of MPI once all ranks have come."""
        meet(self.mpi)
        return function(*arguments)

    def blocked(self, what: str) -> Any:
        """Return a context: a wait for some of the ranks in a blocking call between two of them."""
        return waiting(f"{what} of {self.name}", self.ranks)

    def window(self, nbytes: int) -> Any:
        """Return a window of memory that all ranks share, nbytes of this one's (Collective on comm, of one host)."""
        return self.watched("Win.Allocate_shared", lambda: MPI.Win.Allocate_shared(nbytes, 1, comm=self.mpi))

    def free_window(self, window: Any) -> None:
        """Free a window that was locked for all (Collective on comm)."""
        window.Unlock_all()
        self.watched("Win.Free", window.Free)

    def free(self) -> None:
        """Free the communicator (Collective on comm)."""
        SEATS.leave(self.seat)
        with waiting(f"the end of the communicator of {self.name}", self.ranks):
            if self.checks is not None:
                self.checks.Free()
            self.mpi.Free()


def ranks_of(comm: Any) -> tuple[int, ...]:
    """Return the ranks of the job that a communicator has, in its order."""
    group, world = comm.Get_group(), MPI.COMM_WORLD.Get_group()
    found = tuple(MPI.Group.Translate_ranks(group, list(range(comm.size)), world))
    group.Free()
    world.Free()
    return found


def waiting(what: str, ranks: tuple[int, ...]) -> Any:
    """Return a context: a wait for `ranks` in a blocking call that has no number."""
    return MAIN.on(Wait(lambda: what, time.monotonic(), Call(0, 0, ranks)))


def until(ready: Callable[[], bool]) -> None:
    """Wait until `ready()`: spin a little, then leave the core to others."""
    began, nap = time.perf_counter(), LEAST_NAP_SECONDS
    while not ready():
        waited = time.perf_counter() - began
        if waited > base.SPIN_SECONDS:
            time.sleep(nap)
            nap = min(LONGEST_NAP_SECONDS, waited / 8)


def meet(comm: Any) -> None:
    """Wait for all ranks of an MPI communicator without taking their cores, where a blocking call of MPI would spin for as long as the last one is busy."""
    if comm.size > 1:
        until(comm.Ibarrier().Test)
