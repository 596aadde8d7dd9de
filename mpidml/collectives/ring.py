"""Sum along a ring: each rank sends to the next one a chunk at a time, first to sum up, then to pass the sums round."""

from __future__ import annotations

from mpidml.collectives.base import Collective
from mpidml.core.rounds import Move, Round, Rounds, cut


class Ring(Collective):
    """2 (P - 1) rounds, and 2 (P - 1) / P of the buffer leaves each rank: the least there is, at the most rounds.

    Rank r owns chunk r after the first P - 1 rounds. Source: Patarasuk and Yuan 2009.
    """

    def rounds(self, rank: int, size: int, n: int) -> Rounds:
        """Send and take one chunk a round."""
        to, of = (rank + 1) % size, (rank - 1) % size

        def step(sent: int, taken: int, adds: bool) -> Round:
            return Round((Move(to, *cut(n, size, sent % size)),), (Move(of, *cut(n, size, taken % size)),), adds)

        reduce = tuple(step(rank - 1 - s, rank - 2 - s, True) for s in range(size - 1))
        gather = tuple(step(rank - s, rank - 1 - s, False) for s in range(size - 1))
        return Rounds(reduce, gather, *cut(n, size, rank))
