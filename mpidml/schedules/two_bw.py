"""PipeDream with two versions of the weights: gradients of several microbatches make one update, which later ones read. Source: Narayanan et al. 2021 (2BW)."""

from __future__ import annotations

from collections.abc import Iterator

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule, pairs


class TwoBw(Schedule):
    """`every` microbatches make an update (0: as many as there are ranks, the least that two versions allow).

    W(t + 1) = W(t) - rate x gradient at W(t - 1), on every stage. An epoch's end, a save, and many microbatches (`runtime.stage_programs`) drain the pipeline:
    the update that follows reads the newest weights, in a run that goes on as in one that is resumed there.
    """

    def __init__(self, every: int = 0) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise ValueError(f"every = {every} is not a whole number from 0 up; give how many microbatches make an update")
        self.every = every

    def update_every(self, n_ranks: int) -> int:
        """Return `every`; ValueError where it is below the number of ranks, for which two versions do not do."""
        if 0 < self.every < n_ranks:
            raise ValueError(f"every = {self.every} is below the {n_ranks} ranks, and more than two versions would be read; give {n_ranks} or more")
        return self.every or n_ranks

    def reads(self, item: int, n_ranks: int) -> int:
        """Return the version before the one that all gradients up to this microbatch's update have made: one old, on every stage."""
        return max(0, item // self.update_every(n_ranks) - 1)

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield warm-up, pairs, drain."""
        return pairs(rank, min(n_ranks - rank - 1, n_microbatches), n_microbatches)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float:
        """Return (K - 1) / (M + K - 1)."""
        return (n_ranks - 1) / (n_microbatches + n_ranks - 1)
