"""All microbatches go through a rank's first stage, then all through its second: breadth first. Source: Lamy-Poirier 2023."""

from __future__ import annotations

from collections.abc import Iterator

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule


class LoopedBfs(Schedule):
    """As gpipe, with `chunks` stages a rank: rank k of K has stages k, k + K, ... A stage's gradient is complete long before the next one's, and can travel.

    rank 0   0F0 0F1 2F0 2F1         2B0 2B1 0B0 0B1       stages 0 and 2
    rank 1       1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1           stages 1 and 3
    """

    def __init__(self, chunks: int = 2) -> None:
        if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
            raise ValueError(f"chunks = {chunks} is not a whole number from 1 up; give the number of stages of a rank")
        self.n_chunks = chunks

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield chunk by chunk the forwards, and back the backwards."""
        stages = [chunk * n_ranks + rank for chunk in range(self.n_chunks)]
        for stage in stages:
            for item in range(n_microbatches):
                yield Action(stage, "F", item)
        for stage in reversed(stages):
            for item in range(n_microbatches):
                yield Action(stage, "B", item)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float | None:
        """Return (K - 1) / (v M + K - 1) for v chunks, where M is at least K."""
        if n_microbatches < n_ranks:
            return None
        return (n_ranks - 1) / (self.n_chunks * n_microbatches + n_ranks - 1)
