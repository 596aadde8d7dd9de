"""One forward, one backward without a flush: the weights change after each minibatch, and each goes back through the weights that it came by.

Source: Narayanan et al. 2019 (PipeDream: weight stashing, vertical sync).
"""

from __future__ import annotations

from collections.abc import Iterator

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule, pairs


class Pipedream(Schedule):
    """Items are minibatches from one drain to the next. Stage k of K reads weights K - 1 - k updates old, and keeps as many versions as minibatches in flight, K - k.

    An epoch's end, a save, and many minibatches (`runtime.stage_programs`) drain the pipeline: what follows reads newer weights until all stages are busy
    again, in a run that goes on as in one that is resumed there.

    `vertical`: a minibatch reads on every stage the version that it read on the first one, K - 1 updates old.
    """

    def __init__(self, vertical: bool = False) -> None:
        if not isinstance(vertical, bool):
            raise ValueError(f"vertical = {vertical} is neither true nor false; give one of them")
        self.vertical = vertical

    def update_every(self, n_ranks: int) -> int:
        """Return 1."""
        return 1

    def reads(self, item: int, n_ranks: int) -> int:
        """Return the newest version, or that which the first stage has when the minibatch begins."""
        return max(0, item - n_ranks + 1) if self.vertical else -1

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield warm-up, pairs, drain."""
        return pairs(rank, min(n_ranks - rank - 1, n_microbatches), n_microbatches)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float:
        """Return (K - 1) / (M + K - 1): M minibatches come between one fill and one drain."""
        return (n_ranks - 1) / (n_microbatches + n_ranks - 1)
