"""Slow a rank of a grid down on purpose: it sleeps for as many times its seconds of compute as the pattern says, before anyone gets what it made.

    begin  compute  pause: sleep  sum over ranks  resume  compute  end: sleep
"""

from __future__ import annotations

import time

from mpidml.core.slowdown import Slowdown

clock_now = time.perf_counter


class Slowness:
    """What `slowdown` makes of `rank`; nothing, where it is None. What a sleep took too long the next ones are shorter."""

    def __init__(self, slowdown: Slowdown | None, rank: int) -> None:
        self.slowdown, self.rank = slowdown, rank
        self.owed_seconds = self.factor = 0.0
        self.since, self.clock = -1.0, -1

    def begin(self, clock: int) -> None:
        """A compute of `clock` begins."""
        if self.slowdown is None:
            return
        if clock != self.clock:
            self.clock, self.factor = clock, self.slowdown.extra(self.rank, clock)
        self.since = clock_now()

    def pause(self) -> None:
        """Sleep for what was computed by now; outside a compute nothing is."""
        if self.since < 0:
            return
        now = clock_now()
        self.owed_seconds += (now - self.since) * self.factor
        if self.owed_seconds > 0:
            time.sleep(self.owed_seconds)
            self.owed_seconds -= clock_now() - now
        self.since = clock_now()

    def resume(self) -> None:
        """Compute on."""
        if self.since >= 0:
            self.since = clock_now()

    def end(self) -> None:
        """Sleep for the rest; the compute is done."""
        self.pause()
        self.since = -1.0
