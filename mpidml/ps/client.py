"""A worker's side of the tables: questions asked, own writes not yet seen, copies held. Nothing here waits: tickets tell when.

    pull -> ticket  asked --(answers come, in any order)--> done --(the worker takes it)--> taken
    push            is added to what is asked or done but not yet taken, and kept until every answer contains it

So a worker reads its own writes, however early it asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from mpidml.core.clocks import ENDED
from mpidml.core.role import CLOCK, END, LAST, NOTHING, PULL, PUSH, Array, Effect, Lease, Message, Send, Waiting, new
from mpidml.ps.own_writes import OwnWrites, Write, add_to
from mpidml.ps.routing import Routing, mask
from mpidml.ps.table import TableSpec
from mpidml.ps.ticket import Copy, Ticket, change
from mpidml.sync.base import SyncPolicy

Key = tuple[int, int, int]
MOST_WRITES = 256
UNUSED: dict[Any, Any] = {}
NOBODY: set[int] = set()
SERVERS_FIRST_SECONDS = 1.0
"""How much later a worker reports a wait than its server does: a server that lives knows who is behind."""


class Client:
    """Read and write `tables` as one worker. Each call returns the effects that carry it out.

    `by_clock` says that the servers count deltas when their clock closes. Many clients may share one `Routing` of the tables.
    """

    prompt = True  # the end of a clock is told at once
    __slots__ = (  # one of 100,000 workers of a simulation is small
        "ahead", "asked", "awaited", "batch", "clock", "copies", "drain_seconds", "leaving", "left_at", "n_asked", "n_blocking", "next_ticket", "own", "policy",
        "riding", "routing", "sent", "tables", "tickets", "told", "untaken"
    )  # fmt: skip

    def __init__(self, tables: Sequence[TableSpec] | Routing, policy: SyncPolicy, by_clock: bool) -> None:
        self.routing = tables if isinstance(tables, Routing) else Routing(tables)
        self.tables, self.policy, self.ahead = self.routing.tables, policy, policy.asks_ahead
        self.clock = 0
        self.batch = -1  # number of the global batch that the next pushes are a share of
        self.tickets: dict[int, Ticket] = {}
        self.sent = [0] * len(self.routing.shard_of)
        adds = [role for role, (t, _) in self.routing.shard_of.items() if self.tables[t].update is None]
        holds = any(t.reads != "fresh" for t in self.tables)
        # What a client does not need is one empty dict for all: of 100,000 clients each is small.
        self.own = {role: OwnWrites(by_clock) for role in adds} if adds else UNUSED
        self.asked = dict.fromkeys(self.own, 0) if adds else UNUSED
        self.untaken: dict[int, Ticket] = {} if adds else UNUSED
        self.copies: dict[Key, Copy] = {} if holds else UNUSED
        self.awaited: dict[Key, list[Ticket]] = {} if holds else UNUSED
        self.n_asked = self.n_blocking = self.next_ticket = 0
        self.riding = -1
        self.told = 0  # shards that know by a push of the end of this clock, a bit for each
        self.leaving: set[int] = NOBODY
        self.left_at = self.drain_seconds = 0.0  # `drain_seconds`: from the last write until all of it was sent

    def pull(
        self,
        now: float,
        table: int,
        out: Array | None = None,
        rows: Array | None = None,
        block: tuple[int, int] | None = None,
        clock: int | None = None,
        at_least: int = 0,
    ) -> tuple[Ticket, list[Effect]]:
        """Ask for all rows, a `block` (lo, hi) or the listed `rows` (int64) as of `clock` (default: the own one).

        `out` (rows x width, contiguous) takes the values; None for a table that is read in place. `at_least` demands a version; ENDED is what
        all workers together will have written, for a worker that has sent its `last`.
        """
        spec = self.tables[table]
        clock = self.clock if clock is None else clock
        self.next_ticket = number = self.next_ticket + 1
        oldest = self.policy.oldest_readable(clock)
        if at_least > oldest:
            oldest = at_least
        pieces = self.routing.whole[table] if rows is None and block is None else self.routing.split(table, rows, block)
        unanswered = self.routing.masks[table] if pieces is self.routing.whole[table] else mask(pieces)
        ticket = Ticket(number, table, clock, oldest, None if out is None else out.reshape(-1, spec.width), now, pieces, unanswered)
        self.tickets[number] = ticket
        if self.own and out is not None:
            self.untaken[number] = ticket
        effects: list[Effect] = []
        held = spec.reads != "fresh" and rows is None and at_least < ENDED
        for role, piece in pieces.items():
            if held:
                copy = self.copies.get(key := (role, piece.lo, piece.hi))
                if copy is not None and copy.version >= oldest:
                    self._fill(ticket, role, copy.values, copy.version, copy.counted)
                    continue
                if copy is not None and spec.reads == "eager" and not self.policy.timed:
                    self.awaited.setdefault(key, []).append(ticket)  # no question: the shard sends these rows when its clock moves
                    self.n_blocking += 1
                    continue
            self.n_asked += 1
            if self.own:
                self.asked[role] += 1
            _, region, lo, hi, _ = piece
            effects.append(new(Send, (role, new(Message, (PULL, clock, number, 0, at_least, lo, hi, region[2], None, False, -1)))))
        if not pieces:
            del self.tickets[number]
        return ticket, effects

    def ride(self, now: float, table: int, out: Array | None) -> Ticket:
        """Ask for all rows as of the policy's `asks_ahead` clocks after this one, by the messages that end this one."""
        self.next_ticket = self.riding = number = self.next_ticket + 1
        routing = self.routing
        into = None if out is None else out.reshape(-1, self.tables[table].width)
        ticket = Ticket(number, table, self.clock + self.ahead, 0, into, now, routing.whole[table], routing.masks[table])  # no copy is held that could do
        self.tickets[number] = ticket
        if self.own:
            for role in ticket.pieces:
                self.asked[role] += 1
            if into is not None:
                self.untaken[number] = ticket
        return ticket

    def push(
        self, table: int, delta: Lease, rows: Array | None = None, block: tuple[int, int] | None = None, ends: bool = False, version: int = 0
    ) -> list[Send]:
        """Send `delta` (1-D, rows x width elements) for all rows, a `block` or the listed `rows`.

        `ends`: it also ends the clock for the shards that it reaches. `version`: the clock that the delta was computed from.
        Each reached shard ends its part of the lease once it has applied it.
        """
        effects: list[Send] = []
        clock, ticket = self.clock, self.riding if ends else -1
        pieces = self.routing.whole[table] if rows is None and block is None else self.routing.split(table, rows, block)
        for role, piece in pieces.items():
            lease = delta if rows is None and len(pieces) == 1 else self._part(table, delta, piece.place)
            number = self.sent[role] = self.sent[role] + 1
            if ends:
                self.told |= 1 << role
            lo, hi, listed = piece[2], piece[3], None if rows is None else piece.region.rows
            effects.append(new(Send, (role, new(Message, (PUSH, clock, ticket, number, version, lo, hi, listed, lease, ends, self.batch)))))
            if self.own and role in self.own:
                self._wrote(role, self.own[role].add(number, clock, piece.region, lease.array.reshape(-1, self.tables[table].width)))
        return effects

    def _part(self, table: int, delta: Lease, place: Any) -> Lease:
        """Return what lies in one shard, at `place` of the rows of `delta`."""
        width = self.tables[table].width
        return delta.part(place.start * width, place.stop * width) if isinstance(place, slice) else Lease(delta.array.reshape(-1, width)[place].ravel())

    def _wrote(self, role: int, write: Write) -> None:
        """Add an own write to what was read, but not yet taken."""
        for ticket in self.untaken.values():
            if role in ticket.pieces and not ticket.unanswered >> role & 1:
                change(ticket, ticket.pieces[role], partial(add_to, write))

    def take(self, ticket: Ticket) -> None:
        """Use what a ticket has read: later own writes no longer change it."""
        if self.untaken:
            self.untaken.pop(ticket.number, None)

    def tick(self, now: float) -> Sequence[Effect]:
        """End the clock: tell each shard, except those that a push has told already."""
        clock, riding, told = self.clock, self.riding, self.told
        self.clock, self.riding, self.told = clock + 1, -1, 0
        if told == self.routing.everyone and not self.own:
            return NOTHING
        effects = self._learn(now) if self.own else []
        if told != self.routing.everyone:
            effects += [self._numbered(role, Message(CLOCK, clock, riding)) for role in self.routing.shard_of if not told >> role & 1]
        return effects

    def _learn(self, now: float) -> list[Effect]:
        """Ask a shard, where many own writes are kept, how many of them it has counted."""
        effects: list[Effect] = []
        for role, own in self.own.items():
            if len(own.writes) > MOST_WRITES and not self.asked[role]:
                # A worker that only pushes learns in this way what the shard has counted, and need not keep it any longer. A copy would not tell.
                table, shard = self.routing.shard_of[role]
                row = np.array([self.tables[table].shards[shard].lo], np.int64)
                ticket, asked = Client.pull(self, now, table, np.empty((1, self.tables[table].width), self.tables[table].dtype), rows=row)
                self.untaken.pop(ticket.number)
                effects += asked
        return effects

    def flush(self, now: float) -> list[Effect]:
        """Send what was kept back and may go now; this client keeps nothing back."""
        return []

    def open(self) -> bool:
        """Whether a push of the present clock will be taken."""
        return True

    def jump(self, clock: int) -> None:
        """Go on with `clock`, without having ended those between."""
        self.clock = clock

    def last(self, now: float) -> list[Effect]:
        """Write no more: nobody waits for this worker any more."""
        return [self._numbered(role, Message(LAST)) for role in self.routing.shard_of]

    def end(self, now: float) -> list[Effect]:
        """Leave for good: write no more and read no more. `farewell` says when no shard will send it anything."""
        self.leaving, self.left_at = set(self.routing.shard_of), now
        return [self._numbered(role, Message(END)) for role in self.routing.shard_of]

    def farewell(self, source: int) -> bool:
        """Take a shard's END; return whether it was the last one."""
        self.leaving.discard(source)
        return not self.leaving

    def answer(self, now: float, source: int, message: Message) -> None:
        """Take a ROWS message: fill its ticket; where copies are held, refresh the copy and the tickets that wait for it."""
        ticket = self.tickets.get(message.ticket)
        if message.data is None and ticket is not None and not self.own:  # read in place
            if ticket.answer(source, message.version):
                del self.tickets[message.ticket]
            return
        values: Array | None = None
        if message.data is not None:
            spec = self.tables[self.routing.shard_of[source][0]]
            values = message.data.array.view(spec.dtype).reshape(-1, spec.width)
            if spec.reads != "fresh" and message.rows is None:
                self._hold((source, message.lo, message.hi), values, message)
        if ticket is not None:  # only now: it may be filled in the very memory that `values` lie in
            if self.own:
                self.asked[source] -= 1
            self._fill(ticket, source, values, message.version, message.counted)
        if message.data is not None:
            message.data.release()
        if source in self.own and not self.asked[source]:
            held_here = [c for k, c in self.copies.items() if k[0] == source]
            # In repeat mode a later read may show an older version than this one, but none older than the policy's oldest.
            version = min(message.version, max(self.clock - (self.policy.bound or 0), 0))
            self._forget(source, min([version, *(c.version for c in held_here)]), min([message.counted, *(c.counted for c in held_here)]))

    def _forget(self, source: int, version: int, counted: int) -> None:
        """Drop the own writes that every answer and copy from now on contains."""
        self.own[source].forget(version, counted)

    def _hold(self, key: Key, values: Array, message: Message) -> None:
        """Keep a copy of an answer, unless a newer one is held, and fill the tickets that wait for it."""
        held = self.copies.get(key)
        if held is not None and message.version < held.version:
            return
        self.copies[key] = copy = Copy(values.copy(), message.version, message.counted)
        waiting = self.awaited.pop(key, [])
        if late := [w for w in waiting if copy.version < w.oldest]:
            self.awaited[key] = late
        for waiter in waiting:
            if copy.version >= waiter.oldest:
                self._fill(waiter, key[0], *copy)

    def landing(self, source: int, message: Message) -> Array | None:
        """Name the place of a dense answer, so that it is received where it is wanted."""
        ticket = self.tickets.get(message.ticket)
        if ticket is None or ticket.out is None or not isinstance(ticket.pieces[source].place, slice):
            return None
        landing: Array = ticket.out[ticket.pieces[source].place].reshape(-1)
        return landing

    def waiting(self, now: float) -> list[Waiting]:
        """Report reads that are not answered, and shards that have not taken their leave."""
        found = []
        if self.leaving:
            servers = ", ".join(map(str, sorted({self.routing.server(role) for role in self.leaving})))
            found.append(Waiting(self.left_at, f"the end of this worker lacks the answer of server(s) {servers}, since {now - self.left_at:.1f} s"))
        for ticket in self.tickets.values():
            spec = self.tables[ticket.table]
            servers = ", ".join(map(str, sorted({self.routing.server(role) for role in ticket.lacks()})))
            text = f"table {spec.name}: pull for clock {ticket.clock} lacks {len(ticket.lacks())} answer(s), asked of server(s) {servers}"
            found.append(Waiting(ticket.since + SERVERS_FIRST_SECONDS, f"{text}, since {now - ticket.since:.1f} s"))
        return sorted(found)

    def _numbered(self, role: int, message: Message) -> Send:
        self.sent[role] += 1
        return Send(role, message._replace(counted=self.sent[role]))

    def _fill(self, ticket: Ticket, source: int, values: Array | None, version: int, count: int) -> None:
        if values is not None and ticket.out is not None:
            piece = ticket.pieces[source]
            if not isinstance(piece.place, slice):
                ticket.out[piece.place] = values
            else:
                self._land(ticket.out[piece.place], values)
            own = self.own.get(source)
            if own is not None and own.writes:
                change(ticket, piece, lambda out, region: own.overlay(out, region, version, count))
        if ticket.answer(source, version):
            del self.tickets[ticket.number]

    def _land(self, out: Array, values: Array) -> None:
        """Put what has come where it is wanted, if it was not received there."""
        if out.__array_interface__["data"][0] != values.__array_interface__["data"][0]:
            np.copyto(out, values)
