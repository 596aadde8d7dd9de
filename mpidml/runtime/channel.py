"""Carry arrays of one stage to the next: microbatch after microbatch, each in the slot that is its number's rest by the number of slots.

    stage s, rank 0    [slot 0][slot 1]  -- send 0, 1, 2 ... -->  [slot 0][slot 1]    stage s + 1, rank 1

Inside a host the slots are the same memory (`channel_here`). Between hosts they are each side's own, receives are posted before anyone sends, and nothing has to be
freed. Messages of one channel keep their order, so all have one tag. Every request is made once and started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.collectives import base
from mpidml.collectives.base import LEAST_NAP_SECONDS, LONGEST_NAP_SECONDS
from mpidml.core.current_wait import MAIN, Wait
from mpidml.core.errors import WaitTimeout
from mpidml.core.role import Array
from mpidml.runtime.bell import Bell
from mpidml.runtime.channel_here import ChannelHere, n_counts
from mpidml.runtime.meeting import LINE_NBYTES, Meeting

LONGEST_SLEEP_SECONDS = 5e-3
"""A sleep that nobody rings in: should a ring be lost, that is what it costs."""


class Line(NamedTuple):
    """What is to be carried: rows of `width` values from rank `source` to rank `target`, at most `m` a microbatch, `n_slots` of them at once.

    One in `every` microbatches goes this way, as where stages take turns.
    """

    source: int
    target: int
    m: int
    width: int
    n_slots: int
    name: str
    every: int = 1

    def slot(self, item: int) -> int:
        """Return the slot of a microbatch."""
        return item // self.every % self.n_slots


class Waiting:
    """What a rank's waits have in common: their limit, who is told of, the seconds that they took, and the bell by which ranks of a host wake each other.

    `moved_seconds`: of sums in the middle of computes, what was no wait. `meanwhile()` is done while a rank waits for whatever it is.
    `asleep[r]`: whether rank r of the host wants to be rung. It says so before it looks for the last time, so that no ring is lost.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds, self.seconds, self.moved_seconds = limit_seconds, 0.0, 0.0
        self.bell: Bell | None = None
        self.meetings: dict[Any, Meeting] = {}
        self.asleep: Any = ()
        self.me = 0
        self.fence: Callable[[], None] = lambda: None
        self.meanwhile: Callable[[], None] = lambda: None

    @property
    def away_seconds(self) -> float:
        """Return all that a compute has to leave out: what passed in it without computing."""
        return self.seconds + self.moved_seconds

    def gather(self, comm: Any, value: float, what: str) -> list[float]:
        """Return the value of each rank (Collective on comm)."""
        self._compare(comm, f"values for {what}")
        found = np.empty(comm.size)
        request = comm.mpi.Iallgather(np.array([value]), found)
        self.until(request.Test, lambda: f"all ranks to come to {what}")
        return [float(each) for each in found]

    def meet(self, comm: Any, what: str) -> None:
        """Wait for all ranks (Collective on comm)."""
        self._compare(comm, f"a meeting at {what}")
        if self.bell is None or not comm.one_host:
            request = comm.mpi.Ibarrier()
            self.until(request.Test, lambda: f"all ranks to come to {what}")
            return
        if comm not in self.meetings:
            self.meetings[comm] = Meeting(comm, self.me, self.ring, self.fence)
        meeting = self.meetings[comm]
        meeting.come()
        self.until(meeting.all_here, lambda: f"rank(s) {', '.join(str(comm.ranks[r]) for r in meeting.late())} to come to {what}", rung=True)
        self.fence()

    def _compare(self, comm: Any, what: str) -> None:
        comm.compare(what, patiently=lambda ready: self.until(ready, lambda: f"all ranks to compare {what}"))

    def open(self, comm: Any) -> None:
        """Have a bell (Collective on the ranks of the host)."""
        flags = comm.shared(comm.host.size * LINE_NBYTES // 8, np.int64)
        self.asleep = memoryview(flags)[:: LINE_NBYTES // 8]
        self.me, self.fence, self.bell = comm.host.rank, comm.fence, Bell(comm.host)

    def ring(self, host_rank: int) -> None:
        """Wake a rank of the host if it sleeps."""
        if self.bell is not None and self.asleep[host_rank]:
            self.bell.ring(host_rank)

    def until(self, ready: Callable[[], bool], for_what: Callable[[], str], rung: bool = False) -> float:
        """Wait until `ready()`: spin a little, then leave the core to others; return the seconds. WaitTimeout names what was waited for.

        `rung`: whoever makes it ready rings.
        """
        if ready():
            return 0.0
        began, nap = time.perf_counter(), LEAST_NAP_SECONDS
        around = MAIN.begin(Wait(for_what, began))
        try:
            while not ready():
                self.meanwhile()
                waited = time.perf_counter() - began
                if waited > self.limit_seconds:
                    raise WaitTimeout(f"pipeline: waits for {for_what()} for {waited:.1f} s; the limit is {self.limit_seconds:g} s (--wait-limit)")
                if waited > base.SPIN_SECONDS and rung and self.bell is not None:
                    self._sleep(self.bell, ready)
                elif waited > base.SPIN_SECONDS:
                    time.sleep(nap)
                    nap = min(LONGEST_NAP_SECONDS, waited / 8)
        finally:
            MAIN.end(around)
        waited = time.perf_counter() - began
        self.seconds += waited
        return waited

    def _sleep(self, bell: Bell, ready: Callable[[], bool]) -> None:
        self.asleep[self.me] = 1
        self.fence()
        if not ready():
            bell.wait(LONGEST_SLEEP_SECONDS)
        self.asleep[self.me] = 0

    def close(self) -> None:
        """Have no bell any more."""
        if self.bell is not None:
            self.bell.close()
            self.bell = None


class Channel:
    """One side of a line on `comm` between hosts, or where no memory is shared; `slots` (n_slots, m, width) are its own arrays.

    The source: `claim` an item's slot before writing to it, `send`. The target: `expect` items in order, `take` one, `release` it.
    """

    def __init__(self, comm: Any, line: Line, slots: Array, tag: int, waiting: Waiting) -> None:
        self.comm, self.line, self.slots, self.waiting, self.tag = comm, line, slots, waiting, tag
        self.sends = comm.rank == line.source
        self.going: dict[tuple[int, int], Any] = {}  # by slot and rows: the request that sends them
        self.busy: list[Any] = [None] * line.n_slots  # of each slot: what is under way
        self.coming = [] if self.sends else [comm.Recv_init(slot, line.source, tag) for slot in slots]

    def claim(self, item: int) -> None:
        """Wait until what the slot of `item` held before has left."""
        slot = self.line.slot(item)
        if (request := self.busy[slot]) is not None:
            n = self.line.n_slots * self.line.every
            self.waiting.until(request.Test, lambda: f"rank {self.line.target} to be done with {self.line.name} of microbatch {item - n}")
            self.busy[slot] = None

    def send(self, item: int, rows: int) -> int:
        """Send the first `rows` of the slot; return the bytes that travel."""
        slot = self.line.slot(item)
        if (slot, rows) not in self.going:
            self.going[slot, rows] = self.comm.Send_init(self.slots[slot, :rows], self.line.target, self.tag)
        request = self.busy[slot] = self.going[slot, rows]
        request.Start()
        return int(self.slots[slot, :rows].nbytes)

    def expect(self, item: int) -> None:
        """Be ready for an item whose slot nobody needs any more."""
        self.coming[self.line.slot(item)].Start()

    def take(self, item: int) -> float:
        """Wait until an item is here; return the seconds."""
        request = self.coming[self.line.slot(item)]
        return self.waiting.until(request.Test, lambda: f"{self.line.name} of microbatch {item} from rank {self.line.source}")

    def release(self, item: int) -> None:
        """Be done with an item: its slot is this side's own."""

    def free(self) -> None:
        """Free the requests, and let go of the bell; nothing may be under way."""
        for request in (*self.going.values(), *self.coming):
            self.waiting.until(request.Test, lambda: f"the last of {self.line.name}")
            request.Free()
        self.waiting.close()


def open_channels(comm: Any, lines: Sequence[Line], dtype: Any, memory: bool, waiting: Waiting) -> list[Channel | ChannelHere | None]:
    """Open all lines of a job, given alike on every rank, and return this rank's side of each, None where it has none (Collective on comm).

    `memory`: ranks of one host share the slots; else, and between hosts, they are sent.
    """
    shares = [memory and comm.host_rank_of[line.source] >= 0 and comm.host_rank_of[line.target] >= 0 for line in lines]
    size = sum(line.n_slots * line.m * line.width for line, here in zip(lines, shares, strict=True) if here)
    together = memory and max(comm.allgather(comm.host.size)) > 1
    window = comm.shared(size, dtype) if together else np.zeros(0, dtype)
    counts = comm.shared(sum(n_counts(line.n_slots) for line, here in zip(lines, shares, strict=True) if here), np.int64) if together else np.zeros(0, np.int64)
    if together:
        waiting.open(comm)
    found: list[Channel | ChannelHere | None] = []
    at = counted = 0
    for line, here in zip(lines, shares, strict=True):
        shape, n, told = (line.n_slots, line.m, line.width), line.n_slots * line.m * line.width, n_counts(line.n_slots)
        tag = comm.new_tag()
        if comm.rank not in (line.source, line.target):
            found.append(None)
        elif here:
            found.append(ChannelHere(comm, line, window[at : at + n].reshape(shape), counts[counted : counted + told], waiting))
        else:
            found.append(Channel(comm, line, np.zeros(shape, dtype), tag, waiting))
        at, counted = at + n * here, counted + told * here
    return found
