"""A pipeline in lock step: in each step every stage does one forward and one backward, then all wait for all. With two stages three iterations are in flight."""

from __future__ import annotations

from collections.abc import Iterator

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule


class ThreeStep(Schedule):
    """Microbatch m is at stage k in step m + k on its way there, in step m + 2 (K - 1) - k on its way back: after 2 (K - 1) steps one is done a step.

    step     0   | 1   | 2      | 3      |          K = 2: each is in flight for three steps
    rank 0   F0  | F1  | F2 B0  | F3 B1  |
    rank 1       | F0 B0 | F1 B1 | F2 B2 |
    """

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield what there is to do in each step, and the wait for all at its end."""
        for step in range(n_microbatches + 2 * (n_ranks - 1)):
            if 0 <= (item := step - rank) < n_microbatches:
                yield Action(rank, "F", item)
            if 0 <= (item := step - 2 * (n_ranks - 1) + rank) < n_microbatches:
                yield Action(rank, "B", item)
            yield Action(rank, "X", step)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float:
        """Return what the steps leave idle in which somebody has only a half to do: each lasts as long as its longest."""
        m, n = n_microbatches, n_ranks
        seconds = 0
        for step in range(m + 2 * (n - 1)):
            seconds += max((0 <= step - k < m) + 2 * (0 <= step - 2 * (n - 1) + k < m) for k in range(n))
        return 1 - 3 * m / seconds
