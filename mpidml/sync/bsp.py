"""Bulk synchronous parallel: a read at clock c shows exactly the updates of clocks < c (Valiant, CACM 1990)."""

from __future__ import annotations

from mpidml.core.clocks import Clocks
from mpidml.sync.base import SyncPolicy


class Bsp(SyncPolicy):
    """Wait for everyone, every clock. Deltas are held back until their clock closes: the read rule alone would let newer ones through."""

    commit = "clock"
    repeatable = True
    bound = 0

    def oldest_readable(self, clock: int, worker: int = -1, view: Clocks | None = None) -> int:
        """Return `clock`: nothing older will do."""
        return clock
