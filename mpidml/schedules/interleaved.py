"""One forward, one backward with several stages a rank, so that the pipeline fills in smaller steps. Source: Narayanan et al. 2021."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule


class Interleaved(Schedule):
    """Rank k of K has the stages k, k + K, k + 2 K ...: `chunks` of them. Microbatches go through them in groups of K.

    rank 0   0F0 0F1 2F0 2F1 0F2 ...        stages 0 and 2
    rank 1       1F0 1F1 3F0 3B0 ...        stages 1 and 3
    """

    def __init__(self, chunks: int = 2) -> None:
        if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
            raise ValueError(f"chunks = {chunks} is not a whole number from 1 up; give the number of stages of a rank")
        self.n_chunks = chunks

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield enough forwards that the first microbatches have been through all chunks, then pairs, then the backwards that are left.

        A last group that is short is one of which the rest is left out: what waits for whom is between actions of one microbatch, so no wait is added.
        """
        groups = range(0, n_microbatches, n_ranks)
        stages = [chunk * n_ranks + rank for chunk in range(self.n_chunks)]
        forwards = [Action(stage, "F", first + i) for first in groups for stage in stages for i in range(n_ranks)]
        backwards = [Action(stage, "B", first + i) for first in groups for stage in reversed(stages) for i in range(n_ranks)]
        warm_up = min(len(forwards), 2 * (n_ranks - rank - 1) + (self.n_chunks - 1) * n_ranks)
        for action in (*forwards[:warm_up], *chain(*zip(forwards[warm_up:], backwards, strict=False)), *backwards[len(forwards) - warm_up :]):
            if action.item < n_microbatches:
                yield action

    def bubble(self, n_ranks: int, n_microbatches: int) -> float | None:
        """Return (K - 1) / (v M + K - 1) for v chunks, where M is a multiple of K."""
        if n_microbatches % n_ranks:
            return None
        return (n_ranks - 1) / (self.n_chunks * n_microbatches + n_ranks - 1)
