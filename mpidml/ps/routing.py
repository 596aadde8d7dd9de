"""Cut a question about a table at the borders of its shards: which server is asked for which rows, and where its answer goes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import numpy as np

from mpidml.core.role import Array
from mpidml.ps.own_writes import Region
from mpidml.ps.table import TableSpec
from mpidml.ps.ticket import Piece

MOST_CUTS = 256


def mask(roles: Iterable[int]) -> int:
    """Return the set of `roles` as an integer, one bit for each number."""
    found = 0
    for role in roles:
        found |= 1 << role
    return found


class Routing:
    """The way from rows of `tables` to the roles of their shards. Cuts of whole tables (`whole[table]`) and of blocks are kept.

    `masks[table]` is the set of the roles of a table's shards, `everyone` that of all shards, one bit for each.

    It does not change with its users, so all clients of a process may share one.
    """

    def __init__(self, tables: Sequence[TableSpec]) -> None:
        self.tables = list(tables)
        self.shard_of = {t.first_role + i: (n, i) for n, t in enumerate(self.tables) for i in range(len(t.shards))}
        self.edges = [[s.lo for s in t.shards] for t in self.tables]
        self.cuts: dict[tuple[int, tuple[int, int]], dict[int, Piece]] = {}
        self.whole = [self.split(n, None, (0, t.n_rows)) for n, t in enumerate(self.tables)]
        self.masks = [mask(pieces) for pieces in self.whole]
        self.everyone = mask(self.shard_of)

    def split(self, table: int, rows: Array | None, block: tuple[int, int] | None) -> dict[int, Piece]:
        """Return role number -> piece for all rows, a block (lo, hi) or listed rows."""
        if rows is None and block is None:
            return self.whole[table]
        if block is not None and (known := self.cuts.get((table, block))) is not None:
            return known
        shards, edges, first = self.tables[table].shards, self.edges[table], self.tables[table].first_role
        if rows is not None:
            owner = np.searchsorted(edges, rows, side="right") - 1
            places = [(int(i), np.flatnonzero(owner == i)) for i in np.flatnonzero(np.bincount(owner))]
            return {first + i: Piece(i, Region(-1, -1, np.ascontiguousarray(rows[place])), -1, -1, place) for i, place in places}
        assert block is not None
        lo, hi = block
        found = {}
        for i in range(bisect_right(edges, lo) - 1, bisect_left(edges, hi)):
            a, b = max(lo, shards[i].lo), min(hi, shards[i].hi)
            named = (-1, -1) if (a, b) == (shards[i].lo, shards[i].hi) else (a, b)
            found[first + i] = Piece(i, Region(a, b), *named, slice(a - lo, b - lo))
        if len(self.cuts) < MOST_CUTS:
            self.cuts[table, block] = found
        return found

    def server(self, role: int) -> int:
        """Return the number of the server that hosts a shard's role."""
        table, shard = self.shard_of[role]
        return self.tables[table].shards[shard].server
