"""All forwards, then all backwards. Source: Huang et al. 2019 (GPipe)."""

from __future__ import annotations

from collections.abc import Iterator

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule, pairs


class Gpipe(Schedule):
    """Every stage keeps the activations of all M microbatches at the turn.

    rank 0   F0 F1 F2          B0 B1 B2
    rank 1      F0 F1 F2 B0 B1 B2
    """

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield the forwards, then the backwards."""
        return pairs(rank, n_microbatches, n_microbatches)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float:
        """Return (K - 1) / (M + K - 1)."""
        return (n_ranks - 1) / (n_microbatches + n_ranks - 1)
