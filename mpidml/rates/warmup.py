"""Let the learning rate rise along a line first: start + (1 - start) (it + 1) / clocks, then 1 (Goyal et al. 2017, section 2.2).

It multiplies whatever stands beside it, which does not wait for it: in warmup:100+cosine the cosine begins at clock 0.
"""

from __future__ import annotations

from mpidml.rates.base import Factor, between, whole


class Warmup(Factor):
    """Rise from the share `start` of the rate, 0 to 1, to all of it at the last of the first `clocks` global batches."""

    def __init__(self, clocks: int = 100, start: float = 0.0) -> None:
        self.clocks = whole("clocks", clocks, 1)
        self.start = between("start", start)

    def at(self, it: int) -> float:
        """Return start + (1 - start) (it + 1) / clocks, at most 1."""
        return self.start + (1.0 - self.start) * self.done(it + 1)

    def words(self) -> str:
        """Say how long it rises."""
        return f"rising over the first {self.clocks} clocks"
