"""Stand in for a communicator where all ranks of a job are simulated in one process: memory that they share is plain memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from mpidml.core.role import Array


class VirtualRanks:
    """`size` ranks of one host, all of them here: what a strategy asks of a communicator before its roles run."""

    def __init__(self, size: int) -> None:
        self.rank, self.size, self.one_host = 0, size, True
        self.host = SimpleNamespace(size=size)

    def hosts(self, rank: int) -> bool:
        """Say that every rank lives here."""
        return True

    def fits(self, nbytes: int) -> bool:
        """Say that no window is needed."""
        return False

    def shared(self, n: int, dtype: Any) -> Array:
        """Return n zeros."""
        return np.zeros(n, dtype)

    def Barrier(self) -> None:
        """Wait for nobody."""
