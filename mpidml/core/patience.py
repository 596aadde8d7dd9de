"""Say when a loss has stopped falling, and which look at it was the best."""

from __future__ import annotations

import math


class Patience:
    """Take a loss at each look; `over` once `limit` looks in a row have brought none below the least. A loss that is no number is none below."""

    def __init__(self, limit: int) -> None:
        self.limit, self.since = limit, 0
        self.least: float | None = None
        self.epoch: float | None = None

    def look(self, loss: float | None, epoch: float, counts: bool = True) -> bool:
        """Return whether `loss`, after `epoch` epochs, is the least so far; one that is not may leave the patience as it was."""
        if loss is None or not math.isfinite(loss) or (self.least is not None and loss >= self.least):
            self.since += counts
            return False
        self.least, self.epoch, self.since = loss, epoch, 0
        return True

    @property
    def over(self) -> bool:
        """Whether it is time to end."""
        return self.since >= self.limit

    def state(self) -> tuple[float | None, float | None, int]:
        """Return what a run that goes on must know."""
        return self.least, self.epoch, self.since

    def restore(self, state: tuple[float | None, float | None, int]) -> None:
        """Go on from `state`."""
        self.least, self.epoch, self.since = state
