"""Hold one read that was asked for: which piece of it each shard owes, and where the values go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mpidml.core.role import Array
from mpidml.ps.own_writes import Region


class Piece(NamedTuple):
    """What one shard is asked: which rows of the table, and where they lie in the caller's array.

    `lo`, `hi`: the range as a message names it, -1 for the whole shard or listed rows.
    """

    shard: int
    region: Region
    lo: int
    hi: int
    place: Any


class Copy(NamedTuple):
    """What a shard last answered to one question: its values, the clock they show, how many own messages they contain."""

    values: Array
    version: int
    counted: int


class Ticket:
    """A read that was asked for: `done` once no shard is `unanswered`; then `version` is the oldest clock that any part of it shows.

    `unanswered` has one bit for each role of a shard that still owes its piece.
    """

    __slots__ = ("clock", "number", "oldest", "out", "pieces", "since", "table", "unanswered", "version")

    def __init__(
        self, number: int, table: int, clock: int, oldest: int, out: Array | None, since: float, pieces: dict[int, Piece], unanswered: int
    ) -> None:
        self.number, self.table, self.clock, self.oldest, self.out, self.since = number, table, clock, oldest, out, since
        self.pieces, self.unanswered = pieces, unanswered
        self.version = -1

    def answer(self, role: int, version: int) -> bool:
        """Count the answer of `role`, which shows clock `version`; return whether it was the last."""
        if version < self.version or self.version < 0:
            self.version = version
        self.unanswered = left = self.unanswered & ~(1 << role)
        return not left

    def lacks(self) -> list[int]:
        """List the roles that have not answered."""
        return [role for role in self.pieces if self.unanswered >> role & 1]

    @property
    def done(self) -> bool:
        return not self.unanswered


def change(ticket: Ticket, piece: Piece, how: Callable[[Array, Region], None]) -> None:
    """Let `how(values, region)` work on one piece of what a ticket has read."""
    assert ticket.out is not None
    out = ticket.out[piece.place]
    how(out, piece.region)
    if not isinstance(piece.place, slice):  # listed rows are a copy
        ticket.out[piece.place] = out
