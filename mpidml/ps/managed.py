"""Send a worker's updates no faster than a budget of bytes a second: managed communication (SSPAggr: Wei et al., SoCC 2015).

    push --> backlog of the table --piece by piece, as the bucket grants--> PUSH to the shards
    tick, last, end --> told in their order, each once all updates before it are sent --> CLOCK, LAST, END

So a server counts a clock only when it has all of that clock, and every policy keeps its promise. What the bucket refuses waits for a timer.
Updates that wait are summed up. A worker reads them at once, as it reads all its own writes to tables that add.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from mpidml.core.role import CLOCK, END, LAST, PUSH, After, Array, Effect, Lease, Message, Send, Waiting
from mpidml.ps.budget import NEVER, ROW_NUMBER_NBYTES, Backlog, TokenBucket, Unsent
from mpidml.ps.cached_rows import CachingClient
from mpidml.ps.client import Client
from mpidml.ps.own_writes import Region, Write, add_to
from mpidml.ps.routing import Routing
from mpidml.ps.table import TableSpec
from mpidml.ps.ticket import Piece, Ticket, change
from mpidml.sync.base import SyncPolicy


class ManagedClient(CachingClient):
    """A client whose pushes carry at most `budget` bytes a second, the pieces in `order`. The tables share the budget: that of the oldest update is next.

    A row heavier than a tenth of the budget goes out whole and is paid for afterwards.
    """

    prompt = False

    def __init__(
        self,
        tables: Sequence[TableSpec] | Routing,
        policy: SyncPolicy,
        by_clock: bool,
        budget: float,
        order: str = "fifo",
        seed: int = 0,
        cache_rows: int = 0,
    ) -> None:
        super().__init__(tables, policy, by_clock, cache_rows)
        self.bucket, self.by_clock = TokenBucket(budget), by_clock
        self.backlogs: list[Backlog] = []
        for spec in self.tables:
            row_nbytes = spec.width * spec.dtype.itemsize
            exact = spec.update is not None
            piece_rows = max(1, self.bucket.piece_nbytes // (row_nbytes + ROW_NUMBER_NBYTES * exact))
            self.backlogs.append(Backlog(spec.n_rows, spec.width, spec.dtype, min(piece_rows, spec.n_rows), order, seed, exact))
        self.untold: deque[tuple[Message, int]] = deque()
        self.alarm = self.sent_at = self.last_at = -np.inf
        self.refused_nbytes = 0

    def push(
        self, table: int, delta: Lease, rows: Array | None = None, block: tuple[int, int] | None = None, ends: bool = False, version: int = 0
    ) -> list[Send]:
        """Add `delta` to the backlog; its lease ends here. What it `ends` is told by `tick`."""
        if not self.open():
            raise RuntimeError("a push of the next clock before the last one is sent; read first, which waits for it")
        spec = self.tables[table]
        lo, hi = block if block is not None else (0, spec.n_rows) if rows is None else (-1, -1)
        values = delta.array.reshape(-1, spec.width)
        if self.untaken and spec.update is None:
            self._show(table, Region(lo, hi, rows), values)
        self.backlogs[table].add(self.clock, values, lo, hi, rows, version)
        delta.lend().release()
        return []

    def _show(self, table: int, region: Region, values: Array) -> None:
        """Add a write to what was read, but not yet taken. Where an answer is still to come, it is added then."""
        if region.rows is not None:
            unique, inverse = np.unique(region.rows, return_inverse=True)
            summed = np.zeros((unique.size, values.shape[1]), values.dtype)
            np.add.at(summed, inverse, values)
            region, values = Region(-1, -1, unique), summed
        if not values.size:
            return
        write = Write(0, self.clock, region, values)
        for ticket in self.untaken.values():
            if ticket.table == table:
                answered = [piece for role, piece in ticket.pieces.items() if not ticket.unanswered >> role & 1]
                for piece in [*answered, *self.hits.get(ticket.number, {}).values()]:
                    change(ticket, piece, lambda out, read: add_to(write, out, read))

    def _wrote(self, role: int, write: Write) -> None:
        """Do nothing: what is sent only now was shown when it was pushed."""

    def _fill(self, ticket: Ticket, source: int, values: Array | None, version: int, count: int) -> None:
        super()._fill(ticket, source, values, version, count)
        if values is not None and ticket.out is not None and source in self.own and self._oldest(ticket.table) < NEVER:
            change(ticket, ticket.pieces[source], self.backlogs[ticket.table].overlay)

    def _overlay_hits(self, role: int, out: Array, rows: Array, versions: Array, counts: Array) -> None:
        super()._overlay_hits(role, out, rows, versions, counts)
        self.backlogs[self.routing.shard_of[role][0]].overlay(out, Region(-1, -1, rows))

    def tick(self, now: float) -> list[Effect]:
        """End the clock; the shards are told when all of it is sent."""
        self.untold.append((Message(CLOCK, self.clock, self.riding), self.clock + 1))
        self.clock, self.riding = self.clock + 1, -1
        return [*self._learn(now), *self.flush(now)]

    def last(self, now: float) -> list[Effect]:
        """Write no more, once all is sent."""
        self.last_at = now
        self.untold.append((Message(LAST), NEVER))
        return self.flush(now)

    def end(self, now: float) -> list[Effect]:
        """Leave for good, once all is sent."""
        self.leaving, self.left_at = set(self.routing.shard_of), now
        self.untold.append((Message(END), NEVER))
        return self.flush(now)

    def open(self) -> bool:
        """Whether all of the clocks before this one is sent, where deltas count by clock and so must not be summed up over clocks."""
        return not (self.by_clock and self.untold)

    def flush(self, now: float) -> list[Effect]:
        """Send pieces as long as the bucket grants them, tell what is complete, and ask to be woken for the rest."""
        effects: list[Effect] = []
        while True:
            self._tell(now, effects)
            table = min(range(len(self.backlogs)), key=self._oldest)
            if self._oldest(table) == NEVER:
                return effects
            piece = self.backlogs[table].next(lambda nbytes: self._granted(now, nbytes))
            if piece is None:
                if self.alarm <= now:  # else a timer runs already
                    seconds = self.bucket.wait_seconds(now, self.refused_nbytes)
                    self.alarm = now + seconds
                    effects.append(After(seconds))
                return effects
            self.sent_at = now
            effects += self._send(table, piece)

    def _granted(self, now: float, nbytes: int) -> bool:
        self.refused_nbytes = nbytes
        return self.bucket.take(now, nbytes)

    def _oldest(self, table: int) -> int:
        oldest = self.backlogs[table].oldest_clock()
        return NEVER if oldest is None else oldest

    def _tell(self, now: float, effects: list[Effect]) -> None:
        """Tell the ends of clocks of which nothing is unsent, and the end of all once nothing is."""
        while self.untold:
            message, complete = self.untold[0]
            if any(self._oldest(table) < complete for table in range(len(self.backlogs))):
                return
            self.untold.popleft()
            if message.kind == LAST:
                self.drain_seconds = now - self.last_at
            effects += [self._numbered(role, message) for role in self.routing.shard_of]

    def _send(self, table: int, piece: Unsent) -> list[Effect]:
        region, values, clock, _, version = piece
        pieces: dict[int, Piece] = self.routing.split(table, region.rows, None if region.rows is not None else (region.lo, region.hi))
        effects: list[Effect] = []
        for role, (_, part, lo, hi, place) in pieces.items():
            share = values[place]
            number = self.sent[role] = self.sent[role] + 1
            effects.append(Send(role, Message(PUSH, clock, -1, number, version, lo, hi, part.rows, Lease(share.ravel()), batch=self.batch)))
            if role in self.own:
                self.own[role].add(number, clock, part, share)
        return effects

    def waiting(self, now: float) -> list[Waiting]:
        """Report waits, and what is unsent; while updates flow, the wait is for the budget and begins anew with each piece."""
        unsent = sum(backlog.nbytes for backlog in self.backlogs)
        if not unsent:
            return super().waiting(now)
        text = f"; {unsent} bytes of its updates wait for its budget of {self.bucket.rate:g} bytes/s"
        return [wait._replace(since=max(wait.since, self.sent_at), text=wait.text + text) for wait in super().waiting(now)]


def make_client(
    tables: Sequence[TableSpec] | Routing,
    policy: SyncPolicy,
    by_clock: bool,
    *,
    cache_rows: int = 0,
    budget: float = 0.0,
    order: str = "fifo",
    seed: int = 0,
    before: Client | None = None,
) -> Client:
    """Return the plainest client that does what is asked; what its worker sent until a pause, by the client `before`, its budget counts, too."""
    if budget:
        client = ManagedClient(tables, policy, by_clock, budget, order, seed, cache_rows)
        if isinstance(before, ManagedClient):
            client.bucket = before.bucket
        return client
    return CachingClient(tables, policy, by_clock, cache_rows) if cache_rows else Client(tables, policy, by_clock)
