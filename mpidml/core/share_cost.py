"""Say what a compute costs at any share of a batch: measured at two shares, a straight line through both.

    seconds       fixed + per_row x samples       a fixed part is what no rank is rid of however many there are
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from mpidml.core.cost import CostModel


def line(few: int, low: float, rows: int, high: float) -> tuple[float, float]:
    """Return the seconds whatever the samples, and those of each, by what `few` and `rows` samples take; neither is below 0."""
    if few == rows:
        return 0.0, high / rows
    per_row = max(0.0, (high - low) / (rows - few))
    fixed = high - per_row * rows
    return (fixed, per_row) if fixed >= 0 else (0.0, high / rows)


class ShareCosts(NamedTuple):
    """Costs measured at a `large` share and at a `small` one (the same, where no smaller could be)."""

    large: CostModel
    small: CostModel

    @property
    def line(self) -> tuple[float, float]:
        """Return the seconds of a compute whatever its samples, and those of each of them; neither is below 0."""
        return line(self.small.samples, self.small.mean_seconds, self.large.samples, self.large.mean_seconds)

    def at(self, samples: int) -> CostModel:
        """Return the costs of a compute on so many samples: the draws at the large share, stretched."""
        fixed, per_row = self.line
        factor = (fixed + per_row * samples) / self.large.mean_seconds
        return replace(self.large, compute=tuple(seconds * factor for seconds in self.large.compute), samples=samples)
