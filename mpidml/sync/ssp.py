"""Stale synchronous parallel: a read at clock c misses no update of a clock < c - s (Ho et al., NIPS 2013)."""

from __future__ import annotations

from mpidml.core.clocks import Clocks
from mpidml.sync.base import SyncPolicy


class Ssp(SyncPolicy):
    """Let the fastest worker read up to `staleness` clocks ahead of the slowest. Hides transient slowness, never a permanent one."""

    repeatable = True

    def __init__(self, staleness: int = 1) -> None:
        if isinstance(staleness, bool) or not isinstance(staleness, int) or staleness < 0:
            raise ValueError(f"the staleness {staleness} is not a whole number from 0 up; give for example ssp:3")
        self.bound = staleness

    def oldest_readable(self, clock: int, clocks: Clocks | None) -> int:
        """Return clock - s: the one line that is SSP."""
        return clock - self.bound  # type: ignore[operator]
