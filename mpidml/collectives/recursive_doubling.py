"""Sum by exchanging the whole buffer with a partner at distance 1, 2, 4, ...: few rounds, many bytes."""

from __future__ import annotations

from mpidml.collectives.base import Collective
from mpidml.core.rounds import Move, Round, Rounds


class RecursiveDoubling(Collective):
    """log2 P rounds, the whole buffer in each: for short buffers. Where P is no power of two, those beyond it give theirs to a partner, and get the sum.

    Every rank owns the whole sum; all of them have the same bits, since a + b = b + a. Source: Thakur, Rabenseifner and Gropp 2005.
    """

    def rounds(self, rank: int, size: int, n: int) -> Rounds:
        """Exchange with rank XOR 1, 2, 4, ..."""
        power = 1 << (size.bit_length() - 1)
        if rank >= power:
            partner = Move(rank - power, 0, n)
            return Rounds((Round(sends=(partner,)), Round(receives=(partner,), adds=False)), (), 0, n)
        extra = (Move(rank + power, 0, n),) if rank + power < size else ()
        found = [Round(receives=extra)] if extra else []
        distance = 1
        while distance < power:
            partner = Move(rank ^ distance, 0, n)
            found.append(Round((partner,), (partner,)))
            distance *= 2
        if extra:
            found.append(Round(sends=extra))
        return Rounds(tuple(found), (), 0, n)
