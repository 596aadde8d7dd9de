"""Count completed clocks per worker and know at once which clock enough of them have reached.

`behind[c]` counts the workers that completed exactly c clocks, so `reached` moves without a search: O(1) a tick.

    worker 0  #####        completed 5        all three needed: reached = 3, the minimum; a tick moves it only if the worker
    worker 1  ###          completed 3        was the only one there
    worker 2  ####         completed 4        two needed: reached = 4, whatever worker 1 does
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

NO_CLOCK = "no clock ended in the time given, give more --seconds"
ENDED = 1 << 60


class Clocks:
    """The vector clock of a table shard (Ho et al., NIPS 2013): completed clocks of each worker, and `reached`.

    `reached` is the largest clock that `needed` workers (None: all of them) have completed; `highest` the largest that anyone has. What is kept for
    each worker lies in arrays indexed by its number, so that counting for 10,000 workers in any order stays in a core's cache.
    """

    def __init__(self, workers: Iterable[int], needed: int | None = None) -> None:
        self.workers = list(workers)
        self.completed = array("q", [0]) * (max(self.workers) + 1)
        self.active = len(self.workers)
        self.everyone = needed is None or needed == self.active
        self.needed = self.active if needed is None else needed
        self.behind = {0: self.active}
        self.ahead = self.reached = self.highest = 0

    def begin(self, clock: int) -> None:
        """Start where all workers have completed `clock`; before the first tick."""
        self.completed = array("q", [clock]) * len(self.completed)
        self.behind = {clock: self.active}
        self.reached = self.highest = clock

    def tick(self, worker: int, now: float = 0.0, to: int = -1) -> bool:
        """Count the completed clocks of `worker`, one more or as many as `to`; return whether `reached` moved."""
        old = self.completed[worker]
        new = old + 1 if to < 0 else to
        self.completed[worker] = new
        if new > self.highest:
            self.highest = new
        behind = self.behind
        left = behind[old] - 1
        if left:
            behind[old] = left
        else:
            del behind[old]
        behind[new] = behind[new] + 1 if new in behind else 1
        if old > self.reached or new <= self.reached:
            return False
        self.ahead += 1
        if self.ahead < self.needed:
            return False
        while self.ahead >= self.needed:
            # Clocks move by one, so the next occupied count is near unless the slowest worker just ended.
            self.reached = self.reached + 1 if self.reached + 1 in behind else min(c for c in behind if c > self.reached)
            self.ahead -= behind[self.reached]
        return True

    def end(self, worker: int) -> bool:
        """Take `worker` out for good: nobody waits for it any more. Return whether `reached` moved; with the last worker it is ENDED.

        Where not all are needed it counts no longer, so those that are left must suffice.
        """
        self.active -= 1
        if not self.active:
            self.reached = ENDED
            return True
        if not self.everyone:
            return False
        highest = self.highest
        moved = Clocks.tick(self, worker, to=ENDED)
        self.highest = highest
        return moved

    def start(self, now: float) -> None:
        """Learn when the first clock began; what counts no times ignores it."""

    def learnt(self) -> dict[str, list[float]]:
        """Return what is known of each worker besides its clock; what counts no times knows nothing."""
        return {}

    def know(self, learnt: Mapping[str, list[float]]) -> None:
        """Begin with what the clocks before a pause have learnt."""

    def slowest(self) -> list[int]:
        """List the workers that are furthest behind."""
        least = min(self.completed[w] for w in self.workers)
        return [w for w in self.workers if self.completed[w] == least]


class TimedClocks(Clocks):
    """Clocks that also know when each worker ended its last clock, how long that clock took, and one of the slowest workers. O(1) a tick."""

    def __init__(self, workers: Iterable[int], needed: int | None = None) -> None:
        super().__init__(workers, needed)
        self.last = array("d", [0.0]) * len(self.completed)
        self.interval = array("d", self.last)
        self.at: dict[int, dict[int, None]] = {0: dict.fromkeys(self.workers)}

    def begin(self, clock: int) -> None:
        """Start where all workers have completed `clock`."""
        super().begin(clock)
        self.at = {clock: dict.fromkeys(self.workers)}

    def start(self, now: float) -> None:
        """Count the first clock's seconds from `now` on."""
        self.last = array("d", [now]) * len(self.completed)

    def tick(self, worker: int, now: float = 0.0, to: int = -1) -> bool:
        """Count as `Clocks.tick` does; `now` in seconds."""
        self.interval[worker], self.last[worker] = now - self.last[worker], now
        old = self.completed[worker]
        moved = super().tick(worker, now, to)
        self._place(worker, old)
        return moved

    def end(self, worker: int) -> bool:
        """Take `worker` out for good."""
        old = self.completed[worker]
        moved = super().end(worker)
        self._place(worker, old)
        return moved

    def learnt(self) -> dict[str, list[float]]:
        """Return how long each worker's last clock took."""
        return {"interval": [self.interval[w] for w in self.workers]}

    def know(self, learnt: Mapping[str, list[float]]) -> None:
        """Begin with each worker's interval."""
        for worker, seconds in zip(self.workers, learnt.get("interval", ()), strict=False):
            self.interval[worker] = seconds

    def one_of_the_slowest(self) -> int:
        """Return a worker at the minimum of all that have not ended."""
        return next(iter(self.at[self.reached]))

    def _place(self, worker: int, old: int) -> None:
        here = self.at[old]
        del here[worker]
        if not here:
            del self.at[old]
        self.at.setdefault(self.completed[worker], {})[worker] = None
