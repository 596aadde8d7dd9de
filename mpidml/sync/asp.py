"""Asynchronous parallel: no read ever waits (Recht et al., NIPS 2011). Not the adaptive strategy, whose authors also call it ASP."""

from __future__ import annotations

from mpidml.core.clocks import Clocks
from mpidml.sync.base import SyncPolicy


class Asp(SyncPolicy):
    """Serve whatever is there. Nothing bounds the staleness of a read."""

    def oldest_readable(self, clock: int, worker: int = -1, view: Clocks | None = None) -> int:
        """Return 0: every version is readable."""
        return 0
