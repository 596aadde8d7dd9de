"""Say where a run stands while nobody computes and all that was pushed is applied: there it can be saved, and go on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """The `clock` that all tables have reached, and the `turns` (computes) that each worker was given so far; () before the first."""

    clock: int = 0
    turns: tuple[int, ...] = ()

    def among(self, n_workers: int) -> Position:
        """Return the position for `n_workers`: as it is for as many as before, else each has had its share of the batches that are done.

        Of batches that were not done by all, the rest is computed anew: no update is lost or made twice, but samples of these batches are seen again.
        """
        if len(self.turns) == n_workers:
            return self
        batches = sum(self.turns) // len(self.turns) if self.turns else 0
        return Position(self.clock, (batches,) * n_workers)
