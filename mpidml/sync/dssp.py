"""Dynamic stale synchronous parallel: the staleness moves inside a range with the workers' own speeds (Zhao et al., ICDCS 2019).

lead of a read over the slowest worker
0 ........ least          served at once
least + 1 ... most        the fastest worker: served if one more clock now will make it wait less later, by the times of the last clocks;
                          any other waits until the slowest is `least` behind
"""

from __future__ import annotations

from mpidml.core.clocks import Clocks, TimedClocks
from mpidml.sync.base import SyncPolicy, whole


class Dssp(SyncPolicy):
    """Let the fastest worker run up to `most` clocks ahead where that shortens its waits, everyone up to `least`.

    The paper's controller grants r clocks at once; here its choice is made anew at each read, from the times known by then.
    """

    timed = True

    def __init__(self, least: int = 1, most: int = 8) -> None:
        self.least = whole("least staleness", least, 0, "dssp:1:8")
        self.bound: int = whole("largest staleness", most, self.least, "dssp:1:8")

    def oldest_readable(self, clock: int, worker: int = -1, view: Clocks | None = None) -> int:
        """Return clock - `least`, or what the tables show already if going on pays."""
        wanted = clock - self.least
        if view is None or view.reached >= wanted or clock - view.reached > self.bound:
            return wanted
        assert isinstance(view, TimedClocks)
        fastest = view.completed[worker] == view.highest
        return view.reached if fastest and more_clocks(clock, worker, view, self.bound - (clock - view.reached) + 1) else wanted


def more_clocks(clock: int, worker: int, view: TimedClocks, most: int) -> int:
    """Return how many clocks (0 to `most`) `worker` should still do before it waits: those after which the next end of the slowest is nearest.

    The ends of both are extrapolated by the length of their last clock (algorithm 2 of the paper).
    """
    slowest = view.one_of_the_slowest()
    own, its = view.interval[worker], view.interval[slowest]
    if own <= 0 or its <= 0:
        return 0  # nothing is known yet
    now = view.last[worker] + (clock - view.completed[worker]) * own  # a read may be asked for before its clock begins
    best, shortest = 0, float("inf")
    for more in range(most + 1):
        ahead = (now + more * own - view.last[slowest]) / its
        gap = abs(ahead - max(1, round(ahead))) * its
        if gap < shortest - 1e-9 * its:
            best, shortest = more, gap
    return best
