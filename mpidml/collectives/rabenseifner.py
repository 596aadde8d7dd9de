"""Sum by halving the range with partners ever nearer, then put the halves together again on the way back."""

from __future__ import annotations

from mpidml.collectives.base import Collective
from mpidml.core.rounds import Move, Round, Rounds


class Rabenseifner(Collective):
    """2 log2 P rounds, and 2 (P - 1) / P of the buffer leaves each rank, where P is a power of two.

    Those beyond it give their whole buffer to a partner first, and get the sum at the end. Source: Rabenseifner 2004; Thakur, Rabenseifner and Gropp 2005.
    """

    def rounds(self, rank: int, size: int, n: int) -> Rounds:
        """Halve, then double."""
        power = 1 << (size.bit_length() - 1)
        if rank >= power:
            all_of_it = (Move(rank - power, 0, n),)
            return Rounds((Round(sends=all_of_it),), (Round(receives=all_of_it, adds=False),), n, n)
        extra = (Move(rank + power, 0, n),) if rank + power < size else ()
        reduce = [Round(receives=extra)] if extra else []
        gather: list[Round] = []
        lo, hi, distance = 0, n, power // 2
        while distance:
            middle, partner = (lo + hi) // 2, rank ^ distance
            own, other = (lo, middle), (middle, hi)
            if rank & distance:
                own, other = other, own
            reduce.append(Round((Move(partner, *other),), (Move(partner, *own),)))
            gather.insert(0, Round((Move(partner, *own),), (Move(partner, *other),), False))
            (lo, hi), distance = own, distance // 2
        if extra:
            gather.append(Round(sends=extra))
        return Rounds(tuple(reduce), tuple(gather), lo, hi)
