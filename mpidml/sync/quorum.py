"""Backup workers: a clock closes with the first n gradients; those that come later are dropped (Chen et al., ICLR workshop 2016).

clock            3                  4                5
worker 0   ====|counts       ====|counts       ====|counts
worker 1   =====|counts      =====|counts      ...
worker 2   =================|too late: dropped; goes on with the clock that is open then
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpidml.core.clocks import Clocks
from mpidml.sync.base import Start, SyncPolicy, whole


class Quorum(SyncPolicy):
    """Close each clock with the first `n` gradients (0: of all workers but one), averaged over those n.

    Every gradient that counts was computed from the latest version, as under bsp; the price is work thrown away. Which gradient counts is
    decided at one place, so all shards take or drop it alike, and a dropped one is never sent.
    """

    commit = "clock"
    bound = 0
    gate_at = "push"

    def __init__(self, n: int = 0) -> None:
        self.n = whole("number of gradients", n, 0, "quorum:3")

    def oldest_readable(self, clock: int, worker: int = -1, view: Clocks | None = None) -> int:
        """Return `clock`: nothing older will do."""
        return clock

    def needed(self, n_workers: int) -> int:
        """Return n; ValueError where there are fewer workers."""
        if self.n > n_workers:
            raise ValueError(f"a quorum of {self.n} gradients needs as many workers, there are {n_workers}; give at most quorum:{n_workers}")
        return self.n or max(1, n_workers - 1)

    def gate(self, n_workers: int, fixed_shares: bool) -> FirstGradients:
        """Return the gate that counts the gradients of the open clock."""
        return FirstGradients(n_workers, self.needed(n_workers))


class FirstGradients:
    """Admit the first `needed` gradients of each clock; `clock` is the one that is open."""

    def __init__(self, n_workers: int, needed: int) -> None:
        self.needed, self.weight = needed, n_workers / needed
        self.clock = self.admitted = 0
        self.answers: list[Start] = []
        self.notes: list[tuple[float, ...]] = []

    def ready(self, now: float, worker: int, clock: int, load: float) -> None:
        """Count a gradient of the open clock, or drop an older one."""
        counts = clock < 0 or clock >= self.clock
        following = clock + 1 if counts else self.clock
        if clock >= 0 and clock == self.clock:
            self.admitted += 1
            if self.admitted == self.needed:
                self.clock, self.admitted = self.clock + 1, 0
        # The read of the next clock waits at the shards until they have the gradients that were admitted here.
        self.answers.append(Start(worker, following, following, -1, self.weight, counts))

    def loaded(self, now: float, worker: int, load: float) -> None:
        """Ignore the load."""

    def leave(self, worker: int) -> None:
        """Nothing to do: nobody is told to leave while a clock that can close is open."""

    def starts(self, now: float) -> Iterable[Start]:
        """Answer everyone at once."""
        answers, self.answers = self.answers, []
        return answers

    def waiting(self) -> str:
        """Say how many gradients are missing."""
        return f"clock {self.clock} has {self.admitted} of {self.needed} gradients"

    def learnt(self) -> dict[str, list[float]]:
        """Return nothing: who is fast shows anew in each clock."""
        return {}

    def know(self, learnt: Mapping[str, list[float]]) -> None:
        """Need nothing."""
