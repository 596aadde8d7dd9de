"""A worker's side of the tables: questions asked, own writes not yet seen, copies held. Nothing here waits: tickets tell when.

    pull -> ticket  asked --(answers come, in any order)--> done --(the worker takes it)--> taken
    push            is added to what is asked or done but not yet taken, and kept until every answer contains it

So a worker reads its own writes, however early it asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mpidml.core.role import CLOCK, END, PULL, PUSH, Array, Effect, Lease, Message, Send, Waiting
from mpidml.ps.own_writes import OwnWrites, Region, add_to
from mpidml.ps.table import TableSpec
from mpidml.ps.ticket import Piece, Ticket, change
from mpidml.sync.base import SyncPolicy


class Copy(NamedTuple):
    """What a shard last answered to one question: its values, the clock they show, how many own messages they contain."""

    values: Array
    version: int
    counted: int


Key = tuple[int, int, int]
MOST_CUTS = 256
MOST_WRITES = 256
SERVERS_FIRST_SECONDS = 1.0
"""How much later a worker reports a wait than its server does: a server that lives knows who is behind."""


class Client:
    """Read and write `tables` as one worker. Each call returns the effects that carry it out.

    `by_clock` says that the servers count deltas when their clock closes.
    """

    def __init__(self, tables: Sequence[TableSpec], policy: SyncPolicy, by_clock: bool) -> None:
        self.tables, self.policy = list(tables), policy
        self.clock = 0
        self.tickets: dict[int, Ticket] = {}
        self.untaken: dict[int, Ticket] = {}
        self.shard_of = {t.first_role + i: (n, i) for n, t in enumerate(self.tables) for i in range(len(t.shards))}
        self.edges = [[s.lo for s in t.shards] for t in self.tables]
        self.cuts: dict[tuple[int, tuple[int, int] | None], dict[int, Piece]] = {}
        self.sent = dict.fromkeys(self.shard_of, 0)
        self.asked = dict.fromkeys(self.shard_of, 0)
        self.own = {role: OwnWrites(by_clock) for role, (t, _) in self.shard_of.items() if self.tables[t].update is None}
        self.copies: dict[Key, Copy] = {}
        self.awaited: dict[Key, list[Ticket]] = {}
        self.staleness: Counter[int] = Counter()
        self.n_asked = self.n_blocking = 0
        self.next_ticket = 0
        self.riding = -1
        self.leaving: set[int] = set()
        self.left_at = 0.0

    def pull(
        self,
        now: float,
        table: int,
        out: Array | None = None,
        *,
        rows: Array | None = None,
        block: tuple[int, int] | None = None,
        clock: int | None = None,
        at_least: int = 0,
        rides: bool = False,
    ) -> tuple[Ticket, list[Effect]]:
        """Ask for all rows, a `block` (lo, hi) or the listed `rows` (int64) as of `clock` (default: the own one).

        `out` (rows x width, contiguous) takes the values; None for a table that is read in place. `at_least` demands a version. `rides`: this
        read of all rows as of the next clock is asked by the messages that end this one, since nothing could be answered before them.
        """
        spec = self.tables[table]
        clock = self.clock if clock is None else clock
        self.next_ticket += 1
        oldest = max(self.policy.oldest_readable(clock, None), at_least)
        ticket = Ticket(self.next_ticket, table, clock, oldest, None if out is None else out.reshape(-1, spec.width), now)
        ticket.pieces = self._split(table, rows, block)
        ticket.unanswered = set(ticket.pieces)
        self.tickets[ticket.number] = ticket
        if self.own and out is not None:
            self.untaken[ticket.number] = ticket
        effects: list[Effect] = []
        if rides:
            self.riding = ticket.number
            for role in ticket.pieces:
                self.asked[role] += 1
            return ticket, effects
        for role, piece in ticket.pieces.items():
            if spec.reads != "fresh" and rows is None:
                copy = self.copies.get(key := (role, piece.lo, piece.hi))
                if copy is not None and copy.version >= oldest:
                    self._fill(ticket, role, copy.values, copy.version, copy.counted)
                    continue
                if copy is not None and spec.reads == "eager":
                    self.awaited.setdefault(key, []).append(ticket)  # no question: the shard sends these rows when its clock moves
                    self.n_blocking += 1
                    continue
            self.n_asked += 1
            self.asked[role] += 1
            effects.append(Send(role, Message(PULL, clock, ticket.number, 0, at_least, piece.lo, piece.hi, piece.region.rows)))
        if not ticket.pieces:
            self._finish(ticket)
        return ticket, effects

    def push(
        self, table: int, delta: Lease, *, rows: Array | None = None, block: tuple[int, int] | None = None, ends: bool = False, version: int = 0
    ) -> list[Send]:
        """Send `delta` (1-D, rows x width elements) for all rows, a `block` or the listed `rows`.

        `ends`: it also ends the clock for the shards that it reaches. `version`: the clock that the delta was computed from.
        Each reached shard ends its part of the lease once it has applied it.
        """
        width = self.tables[table].width
        effects: list[Send] = []
        for role, piece in self._split(table, rows, block).items():
            place = piece.place
            if isinstance(place, slice):
                n = (place.stop - place.start) * width
                lease = delta if n == delta.array.size else delta.part(place.start * width, place.stop * width)
            else:
                lease = Lease(delta.array.reshape(-1, width)[place].ravel())
            number = self.sent[role] = self.sent[role] + 1
            clock, ticket_number = (self.clock, self.riding) if ends else (-1, -1)
            message = Message(PUSH, clock, ticket_number, number, version, piece.lo, piece.hi, piece.region.rows, lease)
            effects.append(Send(role, message))
            if role in self.own:
                write = self.own[role].add(number, self.clock, piece.region, lease.array.reshape(-1, width))
                for ticket in self.untaken.values():
                    if role in ticket.pieces and role not in ticket.unanswered:
                        change(ticket, ticket.pieces[role], partial(add_to, write))
        return effects

    def take(self, ticket: Ticket) -> None:
        """Use what a ticket has read: later own writes no longer change it."""
        self.untaken.pop(ticket.number, None)

    def tick(self, now: float, told: Collection[int] = ()) -> list[Effect]:
        """End the clock: tell each shard, except those (role numbers) that a push has `told` already."""
        clock, riding = self.clock, self.riding
        self.clock, self.riding = clock + 1, -1
        effects: list[Effect] = []
        for role, own in self.own.items():
            if len(own.writes) > MOST_WRITES and not self.asked[role]:
                # A worker that only pushes learns in this way what the shard has counted, and need not keep it any longer.
                table, shard = self.shard_of[role]
                lo = self.tables[table].shards[shard].lo
                effects += self.pull(now, table, np.empty((1, self.tables[table].width), self.tables[table].dtype), block=(lo, lo + 1))[1]
        if len(told) == len(self.shard_of):
            return effects
        return [*effects, *(self._numbered(role, Message(CLOCK, clock, riding)) for role in self.shard_of if role not in told)]

    def end(self, now: float) -> list[Effect]:
        """Leave for good: nobody waits for this worker any more. `farewell` says when no shard will send it anything."""
        self.leaving, self.left_at = set(self.shard_of), now
        return [self._numbered(role, Message(END, self.clock)) for role in self.shard_of]

    def farewell(self, source: int) -> bool:
        """Take a shard's END; return whether it was the last one."""
        self.leaving.discard(source)
        return not self.leaving

    def answer(self, now: float, source: int, message: Message) -> None:
        """Take a ROWS message: fill its ticket; where copies are held, refresh the copy and the tickets that wait for it."""
        table, _ = self.shard_of[source]
        spec = self.tables[table]
        values: Array | None = None
        if message.data is not None:
            values = message.data.array.view(spec.dtype).reshape(-1, spec.width)
        if spec.reads != "fresh" and values is not None and message.rows is None:
            key = (source, message.lo, message.hi)
            held = self.copies.get(key)
            if held is None or message.version >= held.version:
                self.copies[key] = copy = Copy(values.copy(), message.version, message.counted)
                waiting = self.awaited.pop(key, [])
                if late := [w for w in waiting if copy.version < w.oldest]:
                    self.awaited[key] = late
                for waiter in waiting:
                    if copy.version >= waiter.oldest:
                        self._fill(waiter, source, *copy)
        ticket = self.tickets.get(message.ticket)
        if ticket is not None:  # only now: it may be filled in the very memory that `values` lie in
            self.asked[source] -= 1
            self._fill(ticket, source, values, message.version, message.counted)
        if message.data is not None:
            message.data.release()
        if source in self.own and not self.asked[source]:
            held_here = [c for k, c in self.copies.items() if k[0] == source]
            # In repeat mode a later read may show an older version than this one, but none older than the policy's oldest.
            version = min(message.version, max(self.policy.oldest_readable(self.clock, None), 0))
            self.own[source].forget(min([version, *(c.version for c in held_here)]), min([message.counted, *(c.counted for c in held_here)]))

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
            servers = ", ".join(map(str, sorted({self._server(role) for role in self.leaving})))
            found.append(Waiting(self.left_at, f"the end of this worker lacks the answer of server(s) {servers}, since {now - self.left_at:.1f} s"))
        for ticket in self.tickets.values():
            spec = self.tables[ticket.table]
            servers = ", ".join(map(str, sorted({self._server(role) for role in ticket.unanswered})))
            text = f"table {spec.name}: pull for clock {ticket.clock} lacks {len(ticket.unanswered)} answer(s), asked of server(s) {servers}"
            found.append(Waiting(ticket.since + SERVERS_FIRST_SECONDS, f"{text}, since {now - ticket.since:.1f} s"))
        return sorted(found)

    def _split(self, table: int, rows: Array | None, block: tuple[int, int] | None) -> dict[int, Piece]:
        """Cut a question at the borders of the shards: role number -> piece. Cuts of whole tables and blocks are kept."""
        if rows is None and (known := self.cuts.get((table, block))) is not None:
            return known
        shards, edges, first = self.tables[table].shards, self.edges[table], self.tables[table].first_role
        if rows is not None:
            owner = np.searchsorted(edges, rows, side="right") - 1
            places = [(int(i), np.flatnonzero(owner == i)) for i in np.unique(owner)]
            return {first + i: Piece(i, Region(-1, -1, np.ascontiguousarray(rows[place])), True, place) for i, place in places}
        lo, hi = (0, self.tables[table].n_rows) if block is None else block
        found = {}
        for i in range(bisect_right(edges, lo) - 1, bisect_left(edges, hi)):
            a, b = max(lo, shards[i].lo), min(hi, shards[i].hi)
            found[first + i] = Piece(i, Region(a, b), (a, b) == (shards[i].lo, shards[i].hi), slice(a - lo, b - lo))
        if len(self.cuts) < MOST_CUTS:
            self.cuts[table, block] = found
        return found

    def _server(self, role: int) -> int:
        table, shard = self.shard_of[role]
        return self.tables[table].shards[shard].server

    def _numbered(self, role: int, message: Message) -> Send:
        self.sent[role] += 1
        return Send(role, message._replace(counted=self.sent[role]))

    def _fill(self, ticket: Ticket, source: int, values: Array | None, version: int, count: int) -> None:
        piece = ticket.pieces[source]
        if values is not None and ticket.out is not None:
            if not isinstance(piece.place, slice):
                ticket.out[piece.place] = values
            elif (out := ticket.out[piece.place]).__array_interface__["data"][0] != values.__array_interface__["data"][0]:
                np.copyto(out, values)  # else it was received where it is wanted
            own = self.own.get(source)
            if own is not None and own.writes:
                change(ticket, piece, lambda out, region: own.overlay(out, region, version, count))
        ticket.version = version if ticket.version < 0 else min(ticket.version, version)
        ticket.unanswered.discard(source)
        if not ticket.unanswered:
            self._finish(ticket)

    def _finish(self, ticket: Ticket) -> None:
        del self.tickets[ticket.number]
        self.staleness[ticket.clock - ticket.version if ticket.version >= 0 else 0] += 1
