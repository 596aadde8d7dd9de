"""Say where a run stands while nobody computes and all that was pushed is applied: there it can be saved, and go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Position:
    """The `clock` that all tables have reached, and the `turns` (computes) that each worker was given so far; () before the first."""

    clock: int = 0
    turns: tuple[int, ...] = ()

    def among(self, n_workers: int, level: bool = False) -> Position:
        """Return the position for `n_workers`: as it is for as many as before unless it is to be `level`, else each has had its share of the batches that are done.

        Of batches that were not done by all, the rest is computed anew: no update is lost or made twice, but samples of these batches are seen again.
        """
        if len(self.turns) == n_workers and not level:
            return self
        return Position(self.clock, (self.batches,) * n_workers)

    @property
    def batches(self) -> int:
        """How many batches are done, each of as many turns as there are workers."""
        return sum(self.turns) // len(self.turns) if self.turns else 0


def saved_at(facts: Mapping[str, Any], n_workers: int, assign: str) -> Position:
    """Return where a saved run goes on: the turns of workers that took from one line are none of shares of their own, and the other way round."""
    return Position(facts["clock"], tuple(facts["turns"])).among(n_workers, level=facts["job"]["assign"] != assign)
