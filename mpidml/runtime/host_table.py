"""Show the ranks of a host where each of them stands: one row a rank in memory that all of them have, written by its owner alone.

    row    rank  pid  | computes, waits or has left, since when, and where | the last beat of its watchdog
           communicator A: 17 calls   communicator B: 4 calls   ...          seats: how far the rank has come in each

The memory is a file that has no name any more as soon as all have opened it. It outlives MPI, so a thread may look until the process ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.runtime import processes

N_SEATS = 64
TEXT_NBYTES = 320
COMPUTES, WAITS, LEFT, FAILED = range(4)
_WHOLE = [(name, "i8") for name in ("rank", "pid", "started", "space", "state")]
_SEATS = [("keys", "u8", (N_SEATS,)), ("numbers", "i8", (N_SEATS,))]
ROW = np.dtype([*_WHOLE, ("beat", "f8"), ("since", "f8"), *_SEATS, ("text", f"S{TEXT_NBYTES}")], align=True)


class Seats:
    """How many calls this rank has made on each of its communicators, by seat; the last seat is for those that found none free, and says nothing."""

    def __init__(self) -> None:
        self.keys, self.numbers = np.zeros(N_SEATS, np.uint64), np.zeros(N_SEATS, np.int64)

    def take(self, key: int) -> int:
        """Return a seat for the communicator `key`."""
        free = np.flatnonzero(self.keys[:-1] == 0)
        if not free.size:
            return N_SEATS - 1
        seat = int(free[0])
        self.numbers[seat], self.keys[seat] = 0, key
        return seat

    def leave(self, seat: int) -> None:
        """Give a seat back."""
        self.keys[seat] = 0

    def move(self, keys: Array, numbers: Array) -> None:
        """Go on in other memory."""
        numbers[:], keys[:] = self.numbers, self.keys
        self.keys, self.numbers = keys, numbers


SEATS = Seats()
"""Those of this process."""


class HostTable:
    """The rows of all ranks of `host`; this process is `rank` of the job (Collective on host)."""

    def __init__(self, host: Any, rank: int) -> None:
        file, path = _made(host.size * ROW.itemsize) if host.rank == 0 else (-1, "")
        path = host.bcast(path)
        if host.rank:
            file = os.open(path, os.O_RDWR)
        host.Barrier()
        if host.rank == 0:
            os.unlink(path)
        self.rows = np.frombuffer(mmap.mmap(file, host.size * ROW.itemsize), ROW)
        os.close(file)
        self.own: Any = self.rows[host.rank]
        self.own["rank"], self.own["pid"] = rank, os.getpid()
        self.own["started"], self.own["space"] = processes.own()
        SEATS.move(self.own["keys"], self.own["numbers"])
        host.Barrier()  # all rows are filled before anyone looks

    def publish(self, now: float, state: int, since: float, text: str) -> None:
        """Say where this rank stands."""
        own = self.own
        own["text"] = text.encode(errors="replace")[:TEXT_NBYTES]
        own["since"], own["state"], own["beat"] = since, state, now


def _made(nbytes: int) -> tuple[int, str]:
    """Make a file of zeros, in memory where there is room."""
    try:
        return _made_in("/dev/shm", nbytes)
    except OSError:
        return _made_in(tempfile.gettempdir(), nbytes)


def _made_in(folder: str, nbytes: int) -> tuple[int, str]:
    file, path = tempfile.mkstemp(prefix="mpidml-", dir=folder)
    try:
        os.posix_fallocate(file, 0, nbytes)  # a page that finds no room when it is first touched would end the process
    except OSError:
        os.close(file)
        os.unlink(path)
        raise
    return file, path


def reached(row: Any, key: int) -> int | None:
    """Return how many calls a rank has made on the communicator `key`; None where its row does not say."""
    seats = np.flatnonzero(row["keys"][:-1] == np.uint64(key)).tolist() if key else []
    return int(row["numbers"][seats[0]]) if seats else None
