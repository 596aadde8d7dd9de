"""Keep a bounded number of what a run notes, evenly over it, though nobody knows how long it will be.

    rows      one of every 1, 2, 4, ... clocks: when there are MOST_ROWS, each two become one
    quotas    a share 1, 1/2, 1/4, ... of all, by turns of every worker: those whose place on a circle, GOLDEN further each time, is below the share
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_ROWS = 2000
GOLDEN = 0.6180339887498949
"""The step that comes nearest to no fraction, so what is left out follows no number of workers."""

Row = tuple[float, int, float]
"""Seconds, clocks done by all, mean staleness."""


def joined(rows: list[Row]) -> list[Row]:
    """Return half as many rows, each two as one: when the second was noted, with the mean of their stalenesses."""
    return [(b[0], b[1], (a[2] + b[2]) / 2) for a, b in zip(rows[::2], rows[1::2], strict=True)]


@dataclass
class Thinned:
    """Take `n` notes one after the other, and keep at most MOST_ROWS."""

    n: int = 0
    share: float = 1.0
    kept: list[tuple[float, tuple[float, ...]]] = field(default_factory=list)

    def add(self, row: tuple[float, ...]) -> None:
        """Take one more."""
        place = self.n * GOLDEN % 1
        self.n += 1
        if place < self.share:
            self.kept.append((place, row))
            if len(self.kept) > MOST_ROWS:
                self.share /= 2
                self.kept = [each for each in self.kept if each[0] < self.share]

    @property
    def rows(self) -> list[tuple[float, ...]]:
        """Return those that are kept, in their order."""
        return [row for _, row in self.kept]
