"""Stale synchronous parallel: a read at clock c misses no update of a clock < c - s (Ho et al., NIPS 2013)."""

from __future__ import annotations

from mpidml.core.clocks import Clocks
from mpidml.sync.base import SyncPolicy, whole


class Ssp(SyncPolicy):
    """Let the fastest worker read up to `staleness` clocks ahead of the slowest. Hides transient slowness, never a permanent one."""

    repeatable = True

    def __init__(self, staleness: int = 1) -> None:
        self.bound = whole("staleness", staleness, 0, "ssp:3")

    def oldest_readable(self, clock: int, worker: int = -1, view: Clocks | None = None) -> int:
        """Return clock - s: the one line that is SSP."""
        return clock - self.bound  # type: ignore[operator]
