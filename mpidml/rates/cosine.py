"""Let the learning rate fall along half a cosine over the run: end + (1 - end) (1 + cos(pi it / max)) / 2 (Loshchilov and Hutter, ICLR 2017)."""

from __future__ import annotations

import math

from mpidml.rates.base import Factor, between, whole


class Cosine(Factor):
    """Fall slowly, fast, slowly, to the share `end` of the rate, 0 to 1. `clocks`: max (0: the run's)."""

    spans = True

    def __init__(self, end: float = 0.0, clocks: int = 0) -> None:
        self.end = between("end", end)
        self.clocks = whole("clocks", clocks, 0)

    def at(self, it: int) -> float:
        """Return end + (1 - end) (1 + cos(pi it / max)) / 2."""
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * self.done(it))) / 2.0

    def words(self) -> str:
        """Say how it falls, and by when."""
        return f"falling to {f'{self.end:g} of it' if self.end else '0'} over {self.clocks} clocks as a cosine"
