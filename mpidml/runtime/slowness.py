"""Slow a rank of a grid down on purpose: after each compute it sleeps for as many times the compute's seconds as the pattern says."""

from __future__ import annotations

import time

from mpidml.core.slowdown import Slowdown


class Slowness:
    """What `slowdown` makes of `rank`; nothing, where it is None. What a sleep took too long the next ones are shorter."""

    def __init__(self, slowdown: Slowdown | None, rank: int) -> None:
        self.slowdown, self.rank = slowdown, rank
        self.owed_seconds = self.factor = 0.0
        self.clock = -1

    def after(self, seconds: float, clock: int) -> None:
        """Sleep after a compute of so many seconds."""
        if self.slowdown is None:
            return
        if clock != self.clock:
            self.clock, self.factor = clock, self.slowdown.extra(self.rank, clock)
        self.owed_seconds += seconds * self.factor
        if self.owed_seconds > 0:
            began = time.perf_counter()
            time.sleep(self.owed_seconds)
            self.owed_seconds -= time.perf_counter() - began
