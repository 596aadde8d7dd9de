"""Sum along a ring: each rank sends to the next one a chunk at a time, first to sum up, then to pass the sums round."""

from __future__ import annotations

import numpy as np

from mpidml.collectives.base import Collective
from mpidml.core.rounds import Move, Round, Rounds, Sizes, cut


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

    def sizes(self, rank: int, size: int, n: int) -> Sizes:
        """Return what the rounds move: a chunk goes out, the one before it comes in."""
        parts = np.arange(size + 1)
        chunks = np.diff(n // size * parts + n % size * parts // size)  # those of `cut`, in whole numbers that stay small
        sent = (np.concatenate([rank - 1 - parts[:-2], rank - parts[:-2]]) if size > 1 else parts[:0]) % size
        return Sizes(chunks[sent], chunks[sent - 1], 2 * (size - 1), int(chunks[rank]))
