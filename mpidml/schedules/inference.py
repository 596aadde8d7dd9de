"""Forwards alone: rows are scored, or predicted, as they flow through the stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule


class Inference(Schedule):
    """After K - 1 fill steps one microbatch is done a step, each after K.

    rank 0   F0 F1 F2
    rank 1      F0 F1 F2
    """

    trains: ClassVar[bool] = False

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield the forwards."""
        for item in range(n_microbatches):
            yield Action(rank, "F", item)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float:
        """Return (K - 1) / (M + K - 1)."""
        return (n_ranks - 1) / (n_microbatches + n_ranks - 1)
