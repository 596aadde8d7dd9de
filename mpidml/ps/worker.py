"""The worker role: read, compute, push, clock - `n_clocks` times, then read the final values and leave.

compute c  =====part=====part====|  done: push the rest, clock     The read of c + 1 is asked for when compute c starts and
read c+1   ?-------------------------!                             answered when the policy allows; so it flies meanwhile.
                                 |  compute c+1  =====
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from mpidml.core.role import END, NOTHING, Array, Compute, Effect, Effects, Lease, Message, Record, Stop, Waiting
from mpidml.ps.client import Client
from mpidml.ps.ticket import Ticket
from mpidml.ps.waits import Waited


class Read(NamedTuple):
    """One read of a clock: which table, which rows (None: all), into which array (None: read in place)."""

    table: int
    out: Array | None
    rows: Array | None = None


class Push(NamedTuple):
    """One write of a clock: which table, the delta, which rows (None: all)."""

    table: int
    delta: Lease
    rows: Array | None = None


class Task(Protocol):
    """What a worker does with its reads; `versions` are the clocks that they show."""

    def reads(self, clock: int) -> Sequence[Read]:
        """Name what is read at `clock`; the arrays of clock c + 1 are filled while clock c computes."""

    def compute(self, clock: int, versions: Sequence[int], report: Callable[[int, int], None]) -> tuple[Sequence[Push], tuple[float, ...]]:
        """Return the pushes of this clock and what was measured; `report(lo, hi)`: elements [lo, hi) of the early delta are final."""

    def early(self) -> Lease | None:
        """Name the delta (of table 0, all rows) that is pushed part by part while it is computed; None: no such delta now."""

    def finish(self, clock: int, versions: Sequence[int], report: Callable[[int, int], None]) -> Any:
        """Use the final values."""


class Worker:
    """Run `task` for `n_clocks` clocks over the tables of `client`; `traced` records how long each read took.

    `waited`: for each role (a worker that ended its clock late, or a server that answered late) how long this worker stood idle for it.
    """

    def __init__(self, client: Client, task: Task, n_clocks: int, traced: bool = False) -> None:
        self.client, self.task, self.n_clocks, self.traced = client, task, n_clocks, traced
        self.computing = self.ended = False
        self.coming: list[Ticket] = []
        self.versions: list[int] = []
        self.told: set[int] = set()
        # A held copy is looked at when the read is due; only a question to the servers can fly during a compute.
        self.early = all(table.reads == "fresh" for table in client.tables)
        # Where only the own push makes the next read possible, the question rides on it.
        self.rides = self.early and client.policy.bound == 0 and len(client.tables) == 1
        self.asked_at = self.answered_at = self.done_at = 0.0
        self.waited: dict[int, Waited] = {}
        self.result: Any = None

    def start(self, now: float) -> Effects:
        """Ask for the first read."""
        self.done_at = now
        effects = self._ask(now, 0)
        return effects if any(t.unanswered for t in self.coming) else [*effects, *self._begin(now)]

    def handle(self, now: float, source: int, message: Message) -> Effects:
        """Take an answer; begin to compute when it was the last one that was missing. Stop when every shard has taken its leave."""
        if message.kind == END:
            return (Stop(),) if self.client.farewell(source) else NOTHING
        self.client.answer(now, source, message)
        for ticket in self.coming:
            if ticket.unanswered:
                return NOTHING
        if self.ended:
            return NOTHING
        self.answered_at = now
        if self.computing:
            return NOTHING
        self.waited.setdefault(source if message.clock < 0 else message.clock, Waited()).add(self.client.clock, self.done_at, now)
        return self._begin(now)

    def _ask(self, now: float, clock: int) -> list[Effect]:
        self.coming, self.asked_at = [], now
        effects: list[Effect] = []
        final = clock if clock == self.n_clocks else 0
        for read in self.task.reads(clock):
            rides = self.rides and clock > 0 and read.rows is None
            ticket, asked = self.client.pull(now, read.table, read.out, rows=read.rows, clock=clock, at_least=final, rides=rides)
            self.coming.append(ticket)
            effects += asked
        return effects

    def _begin(self, now: float) -> list[Effect]:
        clock = self.client.clock
        self.computing, self.told = True, set()
        self.versions = []
        for ticket in self.coming:
            self.client.take(ticket)
            self.versions.append(ticket.version)
        effects: list[Effect] = []
        if self.traced:
            effects.append(Record("pull", (clock, self.asked_at, max(self.answered_at - self.asked_at, 0.0))))
        if clock == self.n_clocks:
            effects.append(Compute(self.task.finish, (clock, self.versions), clock))
            return effects
        self.coming = []
        if self.early:
            effects += self._ask(now, clock + 1)
        effects.append(Compute(self.task.compute, (clock, self.versions), clock))
        return effects

    def part(self, now: float, lo: int, hi: int) -> Effects:
        """Push the shards of table 0 whose rows from `lo` (in elements) up are final."""
        delta = self.task.early()
        if delta is None:
            return NOTHING
        spec = self.client.tables[0]
        effects: list[Effect] = []
        for role, shard in enumerate(spec.shards, spec.first_role):
            if shard.lo * spec.width >= lo and role not in self.told:
                self.told.add(role)
                piece = delta.part(shard.lo * spec.width, shard.hi * spec.width)
                effects += self.client.push(0, piece, block=(shard.lo, shard.hi), ends=True, version=self.versions[0])
        return effects

    def done(self, now: float, result: Any) -> Effects:
        """Push what is not pushed yet, end the clock, and begin the next one if its read has come."""
        self.computing, self.done_at = False, now
        if self.client.clock == self.n_clocks:
            self.ended, self.result = True, result
            return self.client.end(now)
        pushes, measured = result
        clock = self.client.clock
        effects: list[Effect] = list(self.part(now, 0, 0))
        tables = [push.table for push in pushes]
        for i, push in enumerate(pushes, 1):
            ends = push.table not in tables[i:]  # the last push of a clock to a table ends the clock there
            sent = self.client.push(push.table, push.delta, rows=push.rows, ends=ends, version=self.versions[push.table])
            if ends:
                self.told.update([send.target for send in sent])
            effects += sent
        effects.append(Record("clock", (clock, clock - min(self.versions, default=clock), *measured)))
        effects += self.client.tick(now, self.told)
        if not self.early:
            effects += self._ask(now, clock + 1)
        for ticket in self.coming:
            if ticket.unanswered:
                return effects
        effects += self._begin(now)
        return effects

    def landing(self, source: int, message: Message) -> Array | None:
        """Receive answers where they are wanted."""
        return self.client.landing(source, message)

    def waiting(self, now: float) -> list[Waiting]:
        """Report reads that are not answered; while it computes a worker waits for nothing."""
        return [] if self.computing else [wait._replace(since=max(wait.since, self.done_at)) for wait in self.client.waiting(now)]

    def state(self) -> dict[str, Array]:
        """Return nothing yet saved by itself: parameters and optimizer live on the servers."""
        return {}
