"""One forward, one backward in turn, so that few activations are kept. Sources: Narayanan et al. 2019 (PipeDream's order, here with a flush), 2021."""

from __future__ import annotations

from collections.abc import Iterator

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule, pairs


class OneFOneB(Schedule):
    """After K - k - 1 forwards stage k of K does a backward after each forward; it keeps min(M, K - k) microbatches.

    rank 0   F0 F1 F2       B0 F3    B1       B2       B3
    rank 1      F0 F1    B0 F2 B1 F3    B2       B3
    """

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield warm-up, pairs, drain."""
        return pairs(rank, min(n_ranks - rank - 1, n_microbatches), n_microbatches)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float:
        """Return (K - 1) / (M + K - 1)."""
        return (n_ranks - 1) / (n_microbatches + n_ranks - 1)
