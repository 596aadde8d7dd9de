"""Serve one stage's parameters to replicas of a pipeline, each of which pushes one summed gradient a wave and reads one version a wave.

    replica 0   |== wave 3, reads 2 ==|== wave 4, reads 3 ==|        wave: the microbatches of one batch's share that are in flight together
    replica 1   |====== wave 2, reads 2 ======|====== wave 3 ...     version v: all gradients of waves < v, of all replicas
                                              | version 3

A replica starts wave c once the policy lets it read: under ssp:D once all have pushed their waves < c - D. Each rank of a stage has such a server, and all
receive all pushes, so a version is the same bits wherever it is made, and is read where it lies. Source: Park et al., USENIX ATC 2020 (HetPipe).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from mpidml.core.role import Array
from mpidml.ps.store import PLAIN, Store
from mpidml.sync.base import SyncPolicy


class Push(NamedTuple):
    """A wave's gradient, and the version of the weights that it was computed from."""

    version: int
    gradient: Array


class StageServer:
    """Count pushes by the clocks of `policy`, and close each wave that all replicas have pushed: one update, one version more in `store`.

    `store` keeps the policy's bound and one more versions: a wave c reads one of c - bound to c, and none above c is made before its push.
    `tuned`: updates are softened for their staleness; `exact`: a wave reads the oldest version that it may, so that no timing decides;
    `rate(wave)` multiplies the learning rate.
    """

    def __init__(
        self, policy: SyncPolicy, n_replicas: int, store: Store, tuned: bool = False, exact: bool = False, rate: Callable[[int], float] | None = None
    ) -> None:
        self.policy, self.store, self.tuned, self.exact, self.rate = policy, store, tuned, exact, rate
        self.clocks = policy.clocks(range(n_replicas))
        self.held: list[dict[int, Push]] = [{} for _ in range(n_replicas)]
        self.total = np.zeros(store.versions[0].size, store.versions[0].dtype)

    def begin(self, wave: int) -> None:
        """Start where all replicas have pushed all waves below `wave`; before the first push."""
        self.clocks = self.policy.clocks(range(len(self.held)))
        self.clocks.begin(wave)
        self.store.begin(wave)

    @property
    def latest(self) -> int:
        """Return the newest version: how many waves are closed."""
        return self.store.latest

    def choose(self, replica: int, wave: int) -> int:
        """Return the version that a replica's wave reads, or -1 as long as it may not start. Asked of the first stage alone."""
        oldest = max(0, min(wave, self.policy.oldest_readable(wave, replica, self.clocks)))
        if self.latest < oldest:
            return -1
        return oldest if self.exact else self.latest

    def read(self, version: int) -> Array:
        """Return the values of a version that was chosen, once it is there."""
        assert self.latest - len(self.store.versions) < version <= self.latest
        return self.store.versions[version % len(self.store.versions)]

    def push(self, now: float, replica: int, wave: int, push: Push) -> Iterable[int]:
        """Take a replica's gradient of a wave, each once and in order; return the waves that it closes. Of these no gradient is needed any more."""
        if wave != (due := self.clocks.completed[replica]):
            raise RuntimeError(f"replica {replica} pushes wave {wave}, its next is {due}")
        self.held[replica][wave] = push
        first = self.latest
        self.clocks.tick(replica, now)
        while self.latest < self.clocks.reached:
            self._close(self.latest)
        return range(first, self.latest)

    def _close(self, wave: int) -> None:
        """Make one update of a wave's gradients, summed in the order of replicas, softened by the oldest of their reads."""
        pushes = [of.pop(wave) for of in self.held]
        np.copyto(self.total, pushes[0].gradient)
        for push in pushes[1:]:
            self.store.backend.add(self.total, push.gradient)
        staleness = wave - min(push.version for push in pushes)
        tuning = self.policy.tuning(staleness) if self.tuned and staleness else PLAIN
        if self.rate is not None:
            tuning = tuning._replace(rate=tuning.rate * self.rate(wave))
        self.store.step(self.total, tuning)

    def late(self) -> str:
        """Say for whom a wave waits."""
        return ", ".join(f"replica {r} has pushed {self.clocks.completed[r]}" for r in self.clocks.slowest()[:3])
