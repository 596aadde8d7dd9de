"""One microbatch after the other: a stage waits until the one in flight has come back. The yardstick that all others are compared with."""

from __future__ import annotations

from collections.abc import Iterator

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule, pairs


class Naive(Schedule):
    """Forward and backward of each microbatch in turn; one of K ranks works at a time.

    rank 0   F0       B0 F1       B1
    rank 1      F0 B0       F1 B1
    """

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield F, B, F, B, ..."""
        return pairs(rank, 0, n_microbatches)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float:
        """Return (K - 1) / K."""
        return (n_ranks - 1) / n_ranks
