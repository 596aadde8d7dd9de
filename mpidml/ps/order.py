"""Serve one stage's parameters where a gradient counts when it comes (asp), or is too late (quorum): one order of all pushes, on all ranks.

    replica r   first stage   -- push -->   sequencer: the first stage of replica 0 gives each push its place, as they come
                              <- place --   and says whether it counts; each first stage takes pushes in this order, as they are here

    order       1  0  1 | 1  0         first stage: takes a place, and only then hands it on to the other stages of its replica; when it opens a wave
                        ^ wave 5       it says so in the same row of messages. So the others come to the place where it opened it, and are never past it

All microbatches of a wave read, on all stages, what is there at one place of the order: a copy, that is kept until its gradient is pushed. Nobody
waits for another replica: what is not here yet is taken later. Every rank takes the same in the same order, so all replicas come to the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mpidml.core.clocks import Clocks
from mpidml.core.role import Array
from mpidml.ps.store import PLAIN, Store
from mpidml.sync.base import SyncPolicy


class Place(NamedTuple):
    """The next push in the order is `replica`'s; it `counts` or is dropped."""

    replica: int
    counts: bool


class Grant(NamedTuple):
    """A replica goes on with `wave`, whose gradient is multiplied by `weight`."""

    replica: int
    wave: int
    weight: float


class Pushed(NamedTuple):
    """A wave's gradient, and the `version` of the weights that it was computed from."""

    wave: int
    version: int
    gradient: Array


def clocks(policy: SyncPolicy, turns: Sequence[int]) -> Clocks:
    """Return the policy's clocks of replicas that have completed so many waves each."""
    found = policy.clocks(range(len(turns)))
    found.begin(min(turns))
    for replica, n in enumerate(turns):
        if n > found.completed[replica]:
            found.tick(replica, 0.0, n)
    return found


class Sequencer:
    """Give pushes their places, and where the policy has a gate, ask it which of them count, and with which wave a replica goes on."""

    def __init__(self, policy: SyncPolicy, turns: Sequence[int]) -> None:
        self.clocks, self.n_placed = clocks(policy, turns), 0
        self.gate = policy.gate(len(turns), True) if policy.gate_at else None
        self.first, self.waves = max(turns), list(turns)

    def begin(self) -> list[Grant]:
        """Say with which wave each replica begins; nothing, where each goes on by itself."""
        if self.gate is None:
            return []
        for replica in range(len(self.clocks.workers)):
            self.gate.ready(0.0, replica, -1, 0.0)
        return [Grant(start.worker, self.first + start.clock, start.weight) for start in self.gate.starts(0.0)]

    def pushed(self, now: float, replica: int, wave: int) -> list[Place | Grant]:
        """Take a push of the first stage; return what follows from it, in order."""
        self.waves[replica] = wave
        if self.gate is None:
            return [self._place(now, replica, True)]
        self.gate.ready(now, replica, wave - self.first, 0.0)
        found: list[Place | Grant] = []
        for start in self.gate.starts(now):
            found += [self._place(now, start.worker, start.counts), Grant(start.worker, self.first + start.clock, start.weight)]
        return found

    def _place(self, now: float, replica: int, counts: bool) -> Place:
        self.n_placed += 1
        if counts:
            self.clocks.tick(replica, now, self.waves[replica] + 1)
        return Place(replica, counts)


class OrderedServer:
    """Take pushes in the order of their places, and copy the values for a wave where it was opened.

    An update is made of each push that counts, or where the policy commits by the clock, of as many as a clock needs, summed in the order of replicas.
    `store` has one version, the newest values; `n_copies`: waves that are in flight at once. `tuned`: updates are softened for their staleness, which is
    what was taken between the read and the update, in waves of all replicas; `rate(wave)` multiplies the learning rate.

    Copies take turns: they are closed as they were opened, so the k-th wave lies in array k % n_copies whenever a rank hears of it. Ranks with parts
    of a stage make, all together, a step for each array, so they have to come to the same one.
    """

    def __init__(
        self, policy: SyncPolicy, n_replicas: int, store: Store, n_copies: int, tuned: bool = False, rate: Callable[[int], float] | None = None
    ) -> None:
        self.policy, self.n, self.store, self.tuned, self.rate = policy, n_replicas, store, tuned, rate
        self.by_clock = policy.commit == "clock"
        self.needed = policy.needed(n_replicas) if self.by_clock else 1
        self.free = deque(np.empty_like(store.versions[0]) for _ in range(n_copies))
        self.total = np.zeros_like(store.versions[0])
        self.copies: dict[int, Array] = {}
        self.n_dropped = 0
        self.begin((0,) * n_replicas)

    def begin(self, turns: Sequence[int]) -> None:
        """Start where each replica has pushed so many waves, and all is taken."""
        self.clocks, self.latest, self.due = clocks(self.policy, turns), 0, list(turns)
        self.here: list[deque[Pushed]] = [deque() for _ in range(self.n)]
        self.order, self.opened = deque[Place](), deque[tuple[int, int]]()
        self.group: list[tuple[int, Pushed]] = []

    def start(self, replica: int, wave: int) -> bool:
        """Return whether a replica's wave may start by the policy. Asked of the first stage alone."""
        return self.clocks.reached >= min(wave, self.policy.oldest_readable(wave, replica, self.clocks))

    def open(self, wave: int, version: int) -> None:
        """Keep what is there once so many pushes are taken, for a wave to read."""
        if version < self.latest:
            raise RuntimeError(f"wave {wave} reads what was there after {version} pushes, {self.latest} are taken")
        self.opened.append((wave, version))

    def read(self, wave: int) -> Array | None:
        """Return what a wave reads, once it is there."""
        return self.copies.get(wave)

    def close(self, wave: int) -> None:
        """Let go of what a wave has read."""
        self.free.append(self.copies.pop(wave))

    def push(self, replica: int, pushed: Pushed) -> None:
        """Take a replica's gradient of a wave, each once and in order."""
        due = self.due[replica]
        if pushed.wave < due or (pushed.wave > due and not self.by_clock):
            raise RuntimeError(f"replica {replica} pushes wave {pushed.wave}, its next is {due}")
        self.due[replica] = pushed.wave + 1
        self.here[replica].append(pushed)

    def advance(self, now: float) -> tuple[list[Place], list[int]]:
        """Take what is due and here; return its places, and of which replicas the oldest gradient is needed no more, once for each."""
        taken: list[Place] = []
        freed: list[int] = []
        while self._copied() and self.order and self.here[self.order[0].replica]:
            place = self.order.popleft()
            taken.append(place)
            pushed = self.here[place.replica].popleft()
            if place.counts:
                self.group.append((place.replica, pushed))
                if len(self.group) == self.needed:
                    freed += self._update()
                self.clocks.tick(place.replica, now, pushed.wave + 1)
            else:
                freed.append(place.replica)
                self.n_dropped += 1
            self.latest += 1
        return taken, freed

    def _copied(self) -> bool:
        """Copy the values for waves that were opened here; return false where there is no room for that yet."""
        while self.opened and self.opened[0][1] == self.latest:
            if not self.free:
                return False
            wave, _ = self.opened.popleft()
            copy = self.copies[wave] = self.free.popleft()
            np.copyto(copy, self.store.versions[0])
        return True

    def _update(self) -> list[int]:
        """Make one update of the pushes that are held; return their replicas."""
        group, self.group = sorted(self.group, key=lambda pair: pair[0]), []
        np.copyto(self.total, group[0][1].gradient)  # its place may still be read
        for _, pushed in group[1:]:
            self.store.backend.add(self.total, pushed.gradient)
        oldest = min(pushed.version for _, pushed in group)
        staleness = self.clocks.reached - oldest if self.by_clock else (self.latest - oldest) / self.n
        tuning = self.policy.tuning(staleness) if self.tuned and staleness else PLAIN
        if self.rate is not None:
            tuning = tuning._replace(rate=tuning.rate * self.rate(max(pushed.wave for _, pushed in group)))
        self.store.step(self.total, tuning)
        return [replica for replica, _ in group]


class Stages:
    """The servers of one rank's stages. Where the `first` stage is among them, it is the first, and the others take what it has taken."""

    def __init__(self, servers: Sequence[OrderedServer], first: bool) -> None:
        self.servers = list(servers)
        self.told, self.led = (self.servers[:1], self.servers[1:]) if first else (self.servers, [])

    def place(self, place: Place) -> None:
        """Learn of the next place in the order: on a rank with the first stage from the sequencer, else from that rank, when it has taken it."""
        for server in self.told:
            server.order.append(place)

    def advance(self, now: float) -> tuple[list[Place], list[list[int]]]:
        """Take what is due and here; return the places that the first server has taken, and of each server what its `advance` frees."""
        taken, freed = self.servers[0].advance(now)
        for server in self.led:
            server.order.extend(taken)
        return taken, [freed, *(server.advance(now)[1] for server in self.servers[1:])]
