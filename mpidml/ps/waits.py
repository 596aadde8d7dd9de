"""Add up for whom a worker has waited: whoever was the last to make its next clock possible.

worker 0   compute ====|........ wait ........|====     the read of worker 0 was answered when worker 2 ended its clock:
worker 2   compute ===========================|===      worker 0 waited for worker 2, from its own end to that answer

When it was is kept in few bins of time. A wait from s to e adds t - s to all that is waited until t, once t is past s, and e - t once it is past e: so a bin
holds the waits that begin less those that end in it, and the sum of e less that of s. At its edges the sum of waits is exact, whatever their lengths.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import numpy as np

MOST_BINS, FINEST = 64, 1024.0  # bins that hold anything, of one role; bins a second at first: of more bins two each become one
OUTSIDE = 0.05  # of the waited seconds, before and after those that tell when it was


@dataclass(slots=True)
class Waited:
    """All waits for one role: how many, their sum, the longest with the clock before which it fell, and when the first began and the last ended.

    `middle` says when most of it was.
    """

    times: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    longest_clock: int = -1
    first: float = 0.0
    last: float = 0.0
    rate: float = field(default=FINEST, compare=False)
    slopes: dict[int, int] = field(default_factory=partial(defaultdict, int), compare=False, repr=False)
    sums: dict[int, float] = field(default_factory=partial(defaultdict, float), compare=False, repr=False)

    def add(self, clock: int, since: float, now: float) -> None:
        """Count a wait from `since` to `now` that kept `clock` from starting."""
        if not self.times:
            self.first = since
        self.times, self.last = self.times + 1, now
        seconds = now - since
        if not seconds:
            return
        self.seconds += seconds
        if seconds > self.longest_seconds:
            self.longest_seconds, self.longest_clock = seconds, clock
        sums, begin, end = self.sums, int(since * self.rate), int(now * self.rate)
        if begin == end:
            sums[end] += seconds
        else:
            slopes = self.slopes
            slopes[begin] += 1
            slopes[end] -= 1
            sums[begin] -= since
            sums[end] += now
        if len(sums) > MOST_BINS:
            self._widen()

    def merge(self, other: Waited) -> None:
        """Count all that `other` has counted, too."""
        if not other.times:
            return
        self.first = min(self.first, other.first) if self.times else other.first
        self.times, self.seconds, self.last = self.times + other.times, self.seconds + other.seconds, max(self.last, other.last)
        if other.longest_seconds > self.longest_seconds:
            self.longest_seconds, self.longest_clock = other.longest_seconds, other.longest_clock
        self._widen(other.rate)
        shift = round(np.log2(other.rate / self.rate))
        for number, slope in other.slopes.items():
            self.slopes[number >> shift] += slope
        for number, part in other.sums.items():
            self.sums[number >> shift] += part
        self._widen()

    def _widen(self, rate: float = FINEST) -> None:
        """Make one bin of two each until there are few, and no more than `rate` a second."""
        while len(self.sums) > MOST_BINS or self.rate > rate:
            sums, slopes = self.sums, self.slopes
            self.rate, self.sums, self.slopes = self.rate / 2, defaultdict(float), defaultdict(int)
            for number, part in sums.items():
                self.sums[number >> 1] += part
            for number, slope in slopes.items():
                self.slopes[number >> 1] += slope

    def middle(self) -> tuple[float, float]:
        """Return when a share OUTSIDE of all the waited seconds was over, and when as much was still to come, within a bin."""
        if not self.sums:
            return self.first, self.last
        at, waited, slope, total = [], [], 0, 0.0
        for number in sorted(self.sums):
            for edge in (number, number + 1):
                at.append(edge / self.rate)
                waited.append(slope * at[-1] + total)
                if edge == number:
                    slope, total = slope + self.slopes[number], total + self.sums[number]
        found = np.interp([OUTSIDE * waited[-1], (1 - OUTSIDE) * waited[-1]], np.maximum.accumulate(waited), at)
        begin, end = found.clip(self.first, self.last).tolist()
        return begin, end


class Tally:
    """What a worker, or many together, count: how long they stood idle for each role, and how many computes read how stale values."""

    __slots__ = ("staleness", "waited")

    def __init__(self) -> None:
        self.waited: dict[int, Waited] = {}
        self.staleness: defaultdict[int, int] = defaultdict(int)

    def wait(self, role: int, clock: int, since: float, now: float) -> None:
        """Count a wait for `role` from `since` to `now` that kept `clock` from starting."""
        waited = self.waited.get(role)
        if waited is None:
            waited = self.waited[role] = Waited()
        waited.add(clock, since, now)
