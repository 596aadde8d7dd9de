"""Let the learning rate fall to 0 over the run: (1 - it / max)^power."""

from __future__ import annotations

import math

from mpidml.rates.base import Factor, between, whole


class Poly(Factor):
    """Fall along a power of what is left, power 1 along a line; power >= 0. `clocks`: max (0: the run's)."""

    spans = True

    def __init__(self, power: float = 1.0, clocks: int = 0) -> None:
        self.power = between("power", power, most=math.inf)
        self.clocks = whole("clocks", clocks, 0)

    def at(self, it: int) -> float:
        """Return (1 - it / max)^power."""
        return float((1.0 - self.done(it)) ** self.power)

    def words(self) -> str:
        """Say how it falls, and by when."""
        return f"falling to 0 over {self.clocks} clocks as (1 - clock / {self.clocks})^{self.power:g}"
