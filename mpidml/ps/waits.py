"""Add up for whom a worker has waited: whoever was the last to make its next clock possible.

worker 0   compute ====|........ wait ........|====     the read of worker 0 was answered when worker 2 ended its clock:
worker 2   compute ===========================|===      worker 0 waited for worker 2, from its own end to that answer
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Waited:
    """All waits for one role: how many, their sum, the longest with the clock before which it fell, and when the first began and the last ended."""

    times: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    longest_clock: int = -1
    first: float = 0.0
    last: float = 0.0

    def add(self, clock: int, since: float, now: float) -> None:
        """Count a wait from `since` to `now` that kept `clock` from starting."""
        if not self.times:
            self.first = since
        self.times, self.last = self.times + 1, now
        self.seconds += now - since
        if now - since > self.longest_seconds:
            self.longest_seconds, self.longest_clock = now - since, clock

    def merge(self, other: Waited) -> None:
        """Count all that `other` has counted, too."""
        if not other.times:
            return
        self.first = min(self.first, other.first) if self.times else other.first
        self.times, self.seconds, self.last = self.times + other.times, self.seconds + other.seconds, max(self.last, other.last)
        if other.longest_seconds > self.longest_seconds:
            self.longest_seconds, self.longest_clock = other.longest_seconds, other.longest_clock


class Tally:
    """What a worker, or many together, count: how long they stood idle for each role, and how many computes read how stale values."""

    __slots__ = ("staleness", "waited")

    def __init__(self) -> None:
        self.waited: dict[int, Waited] = {}
        self.staleness: dict[int, int] = {}

    def wait(self, role: int, clock: int, since: float, now: float) -> None:
        """Count a wait for `role` from `since` to `now` that kept `clock` from starting."""
        waited = self.waited.get(role)
        if waited is None:
            waited = self.waited[role] = Waited()
        waited.add(clock, since, now)

    def read(self, staleness: int) -> None:
        """Count a compute that read values `staleness` clocks old."""
        self.staleness[staleness] = self.staleness.get(staleness, 0) + 1
