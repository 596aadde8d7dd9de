"""Sum up a binomial tree to rank 0, and pass the sum down again."""

from __future__ import annotations

from mpidml.collectives.base import Collective
from mpidml.core.rounds import Move, Round, Rounds


class Tree(Collective):
    """2 ceil(log2 P) rounds from leaf to leaf; 2 (P - 1) buffers travel in all. Rank 0 owns the sum. Source: Thakur, Rabenseifner and Gropp 2005."""

    def rounds(self, rank: int, size: int, n: int) -> Rounds:
        """Take from the children, nearest first, send to the parent; then the other way round."""
        reduce: list[Round] = []
        gather: list[Round] = []
        distance = 1
        while distance < size:
            if rank & distance:
                parent = Move(rank - distance, 0, n)
                reduce.append(Round(sends=(parent,)))
                gather.insert(0, Round(receives=(parent,), adds=False))
                break
            if rank + distance < size:
                child = Move(rank + distance, 0, n)
                reduce.append(Round(receives=(child,)))
                gather.insert(0, Round(sends=(child,)))
            distance *= 2
        return Rounds(tuple(reduce), tuple(gather), 0 if rank == 0 else n, n)
