"""Count completed clocks per worker and know their minimum at once.

`behind[c]` counts the workers that completed exactly c clocks, so the minimum moves without a search: O(1) a tick.

    worker 0  #####        completed 5        reached = 3: every worker has completed 3 clocks
    worker 1  ###          completed 3        a tick moves `reached` only if the worker was the only one at the minimum
"""

from __future__ import annotations

from collections.abc import Iterable

ENDED = 1 << 60


class Clocks:
    """The vector clock of a table shard (Ho et al., NIPS 2013): completed clocks of each worker, and `reached`, their minimum."""

    def __init__(self, workers: Iterable[int]) -> None:
        self.completed = dict.fromkeys(workers, 0)
        self.behind = {0: len(self.completed)}
        self.reached = 0

    def tick(self, worker: int) -> bool:
        """Count one more completed clock of `worker`; return whether the minimum moved."""
        clock = self.completed[worker]
        self.completed[worker] = clock + 1
        return self._move(clock, clock + 1)

    def end(self, worker: int) -> bool:
        """Take `worker` out of the minimum for good; return whether the minimum moved."""
        clock = self.completed[worker]
        self.completed[worker] = ENDED
        return self._move(clock, ENDED)

    def _move(self, old: int, new: int) -> bool:
        behind = self.behind
        behind[old] -= 1
        behind[new] = behind.get(new, 0) + 1
        if behind[old]:
            return False
        del behind[old]
        if old != self.reached:
            return False
        # Clocks move by one, so the next occupied count is near unless the slowest worker just ended.
        self.reached = old + 1 if old + 1 in behind else min(behind)
        return self.reached != ENDED

    def slowest(self) -> list[int]:
        """List the workers at the minimum."""
        return [w for w, c in self.completed.items() if c == self.reached]
