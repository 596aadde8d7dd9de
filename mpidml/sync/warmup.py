"""Warm up, then go stale: SSP without any staleness for the first clocks, while gradients are large, and with it afterwards.

clock              0 ... n-1   n  n+1  n+2 ... n+s   n+s+1 ...
staleness allowed  0 ...   0   0    1    2 ...   s       s ...       (it grows by one a clock, so no later read shows less)

While it lasts no read misses an update, though it may show newer ones, as under ssp:0: only bsp holds those back. An early phase without
asynchrony is the "warmstart" of Dean et al. (NIPS 2012); here every worker takes part in it.
"""

from __future__ import annotations

from mpidml.core.clocks import Clocks
from mpidml.sync.base import SyncPolicy, whole


class Warmup(SyncPolicy):
    """Read nothing stale for the first `clocks` clocks, then at most `staleness` clocks behind, which grows to that one by one."""

    repeatable = True

    def __init__(self, clocks: int = 100, staleness: int = 3) -> None:
        self.n_clocks = whole("number of clocks", clocks, 0, "warmup:100:3")
        self.bound = whole("staleness", staleness, 0, "warmup:100:3")

    def oldest_readable(self, clock: int, worker: int = -1, view: Clocks | None = None) -> int:
        """Return `clock` while warming up, then clock - s, but never less than was readable before."""
        return max(min(clock, self.n_clocks), clock - self.bound)  # type: ignore[operator]
