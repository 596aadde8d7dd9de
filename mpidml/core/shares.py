"""Cut batches by what each worker gets done: who computes three samples while another computes one is given three of four.

    clocks 0 to 7    equal shares, measured          | ..... rank 0 ..... | ..... rank 1 ..... |     rank 1 waits
    from clock 8 on  shares as the speeds were       | ........ rank 0 ........ | .. rank 1 .. |     nobody does

Gradients are summed over samples, so shares change nothing but who computes what.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

EVERY = 8
"""Clocks between two measurements: of so many the mean is taken."""
LEAST_CHANGE = 0.03
"""A share that would change by less stays: otherwise noise alone would move samples about."""
LEAST_SHARE = 0.01
"""No worker's share falls below this part of an equal one."""
MOST_STEP = 1.5
"""A share changes by no more than this factor at a time: one stall is no reason to take all samples from a worker."""


class Shares:
    """The shares of `n_workers`, alike on every rank that learns the same."""

    def __init__(self, n_workers: int) -> None:
        self.parts = [1.0 / n_workers] * n_workers

    def learn(self, samples: Sequence[int], seconds: Sequence[float]) -> bool:
        """Take what each worker has computed in how many seconds; return whether shares change. Nothing is learnt where one has computed nothing."""
        if min(samples) < 1 or min(seconds) <= 0:
            return False
        speeds = [n / s for n, s in zip(samples, seconds, strict=True)]
        least = LEAST_SHARE / len(speeds)
        wanted = [max(speed / sum(speeds), least) for speed in speeds]
        wanted = [min(max(new, old / MOST_STEP), old * MOST_STEP) for new, old in zip(wanted, self.parts, strict=True)]
        wanted = [part / sum(wanted) for part in wanted]
        if max(abs(new - old) / old for new, old in zip(wanted, self.parts, strict=True)) < LEAST_CHANGE:
            return False
        self.parts = wanted
        return True

    def edge(self, size: int, worker: int) -> int:
        """Return the first of `size` samples that belongs to `worker`; for the number of workers it is the end.

        Each has one at least where there are enough: who computes nothing could not be measured any more. The rest is cut by what each share has above
        one sample: where none has less than one, that is a cut by the shares themselves.
        """
        n = len(self.parts)
        if size <= n:
            return size * worker // n
        above = list(accumulate((max(size * part - 1, 0.0) for part in self.parts), initial=0.0))
        return worker + round((size - n) * above[worker] / above[n])
