"""Say how many clocks each program of a run is of, before it begins.

    longest 64, cut at 150     64 | 64 | 22 || 64 | 64 | 22 || 64 ...        all is drained at the end of each
"""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

from mpidml.core.job import NO_END


class Spans(NamedTuple):
    """Programs follow each other from clock 0 on, each as long as it can be: of at most `longest` clocks, none past a multiple of one of `cuts`, nor the end."""

    longest: int
    cuts: tuple[int, ...]

    def room(self, clock: int, end: int) -> int:
        """Return how many clocks there are from `clock` to the next cut, or to the end; 0 beyond it."""
        return min(max(0, end - clock), *(cut - clock % cut for cut in self.cuts))

    def next(self, clock: int, end: int) -> int:
        """Return of how many clocks the program is that begins at `clock`."""
        return min(self.longest, self.room(clock, end))

    def within(self, n: int) -> set[int]:
        """Return of how many clocks the programs are that fill `n` between two cuts."""
        return {*[self.longest] * (n >= self.longest), n % self.longest} - {0}

    def every(self, end: int) -> set[int]:
        """Return of how many clocks programs are that begin between 0 and `end`; after the cuts' common multiple all comes again, but for the end."""
        found, clock, once = set[int](), 0, min(end, lcm(*self.cuts))
        while clock < once and len(found) < min(self.longest, *self.cuts):
            n = self.room(clock, end)
            found |= self.within(n)
            clock += n
        return found if end == NO_END else found | self.within(end - max((end - 1) // cut * cut for cut in self.cuts))
