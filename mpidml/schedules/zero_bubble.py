"""Backward in two halves: the gradient of the input at once, that of the weights where a stage would be idle. Source: Qi et al. 2023, ZB-H1."""

from __future__ import annotations

from collections.abc import Iterator

from mpidml.core.action import Action
from mpidml.schedules.base import Schedule


class ZeroBubble(Schedule):
    """As one_f_one_b, with rank k's weight gradients k microbatches behind: the others' waits for it shrink, and so does its own at the end.

    rank 0   F0 F1    I0 W0 F2 I1 W1 I2 W2
    rank 1      F0 I0 F1 I1 W0 F2 I2 W1 W2

    A stage keeps a microbatch until its weight gradient is done: no more of them than K at once, as stage 0 of one_f_one_b.
    """

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield forwards, input gradients, and weight gradients `rank` behind them."""
        warm_up, behind = min(n_ranks - rank - 1, n_microbatches), rank
        for item in range(n_microbatches + warm_up):
            if item < n_microbatches:
                yield Action(rank, "F", item)
            if (back := item - warm_up) >= 0:
                yield Action(rank, "I", back)
                if back >= behind:
                    yield Action(rank, "W", back - behind)
        for item in range(max(0, n_microbatches - behind), n_microbatches):
            yield Action(rank, "W", item)

    def bubble(self, n_ranks: int, n_microbatches: int) -> float | None:
        """Return (K - 1) / (3 M + K - 1): each half takes as long as a forward, and all but one of them is filled. For M >= K."""
        if n_microbatches < n_ranks:
            return None
        return (n_ranks - 1) / (3 * n_microbatches + n_ranks - 1)
