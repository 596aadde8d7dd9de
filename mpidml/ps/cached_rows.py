"""Answer reads of listed rows from a cache of bounded size where the policy allows, and ask the servers for the other rows only.

    pull [3, 90, 7]   cache: 3 at version 5, 7 at version 2          policy: version 4 will do
                      3 from the cache, [90, 7] asked of their shards in one message each; the answer replaces 7 and takes a place for 90

A cached row lacks own writes, as any answer may. They are added when it is read, and kept as long as a row is held that lacks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from mpidml.core.role import Array, Effect, Message
from mpidml.ps.client import MOST_WRITES, Client
from mpidml.ps.own_writes import Write, add_to
from mpidml.ps.routing import Routing
from mpidml.ps.row_cache import RowCache
from mpidml.ps.table import TableSpec
from mpidml.ps.ticket import Piece, Ticket, change
from mpidml.sync.base import SyncPolicy

LEAST_WRITES = 16


class CachingClient(Client):
    """A client that holds at most `cache_rows` rows of each table that it reads by listed rows (0: none)."""

    def __init__(self, tables: Sequence[TableSpec] | Routing, policy: SyncPolicy, by_clock: bool, cache_rows: int = 0) -> None:
        super().__init__(tables, policy, by_clock)
        self.cache_rows = cache_rows
        self.caches: dict[int, RowCache] = {}
        self.hits: dict[int, dict[int, Piece]] = {}
        self.look_at = dict.fromkeys(self.own, LEAST_WRITES)

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
        """Ask as any client does, listed rows only where the cache does not hold them."""
        if rows is None or out is None or not self.cache_rows:
            return super().pull(now, table, out, rows=rows, block=block, clock=clock, at_least=at_least)
        oldest = max(self.policy.oldest_readable(self.clock if clock is None else clock), at_least, 0)
        hit = self._cache(table).find(rows, oldest)
        found, missing = np.flatnonzero(hit), np.flatnonzero(~hit)
        ticket, effects = super().pull(now, table, out, rows=rows[missing], clock=clock, at_least=at_least)
        for role, piece in ticket.pieces.items():
            ticket.pieces[role] = piece._replace(place=missing[piece.place])
        if found.size:
            self._fill_hits(ticket, rows[found], found)
        return ticket, effects

    def _cache(self, table: int) -> RowCache:
        cache = self.caches.get(table)
        if cache is None:
            spec = self.tables[table]
            cache = self.caches[table] = RowCache(min(self.cache_rows, spec.n_rows), spec.width, spec.dtype)
        return cache

    def _fill_hits(self, ticket: Ticket, rows: Array, places: Array) -> None:
        """Fill the `places` of a read with cached `rows` and the own writes that these lack."""
        assert ticket.out is not None
        values = np.empty((rows.size, ticket.out.shape[1]), ticket.out.dtype)
        versions, counts = self.caches[ticket.table].read(rows, values)
        ticket.version = int(versions.min())
        pieces = self.routing.split(ticket.table, rows, None) if self.own else {}
        for role, piece in pieces.items():
            if role in self.own and piece.region.rows is not None:
                part = values[piece.place]
                self._overlay_hits(role, part, piece.region.rows, versions[piece.place], counts[piece.place])
                values[piece.place] = part
        ticket.out[places] = values
        if ticket.number in self.untaken:
            self.hits[ticket.number] = {role: piece._replace(place=places[piece.place]) for role, piece in pieces.items()}

    def _overlay_hits(self, role: int, out: Array, rows: Array, versions: Array, counts: Array) -> None:
        self.own[role].overlay_rows(out, rows, versions, counts)

    def _wrote(self, role: int, write: Write) -> None:
        super()._wrote(role, write)
        for number, pieces in self.hits.items():
            if role in pieces:
                change(self.untaken[number], pieces[role], partial(add_to, write))

    def take(self, ticket: Ticket) -> None:
        """Use what a ticket has read."""
        self.hits.pop(ticket.number, None)
        super().take(ticket)

    def answer(self, now: float, source: int, message: Message) -> None:
        """Take a ROWS message; put listed rows into the cache."""
        table = self.routing.shard_of[source][0]
        if message.rows is not None and message.data is not None and table in self.caches:
            spec = self.tables[table]
            values = message.data.array.view(spec.dtype).reshape(-1, spec.width)
            self.caches[table].store(message.rows, values, message.version, message.counted)
        super().answer(now, source, message)

    def _forget(self, source: int, version: int, counted: int) -> None:
        """Drop the own writes that no held row lacks. To look at all held rows costs time, so this is done as writes double."""
        table, shard = self.routing.shard_of[source]
        cache, own = self.caches.get(table), self.own[source]
        if cache is None:
            own.forget(version, counted)
            return
        if len(own.writes) < self.look_at[source]:
            return
        lo, hi, _ = self.tables[table].shards[shard]
        # What is older is read no more: `oldest_readable` alone may fall again, as after a warm-up.
        bound = self.policy.bound
        since = 0 if bound is None else max(min(self.policy.oldest_readable(self.clock), self.clock - bound), 0)
        for _ in range(2):
            oldest, least = cache.oldest_version(since, lo, hi), cache.oldest_counted(since, lo, hi)
            own.forget(version if oldest is None else min(version, oldest), counted if least is None else min(counted, least))
            if len(own.writes) <= MOST_WRITES:
                break
            cache.drop(*((version, 0) if own.by_clock else (0, counted)), lo, hi)  # rows that would keep writes for ever
        self.look_at[source] = max(LEAST_WRITES, 2 * len(own.writes))
