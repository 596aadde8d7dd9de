"""Keep one rank's part in the order of pushes: what it is told of it, what it tells others, and the pushes that it takes.

    first stage of replica 0         -- PLACE, GRANT, STOP, FINISH -->   first stages of other replicas     words, each row in its order
    first stage of a replica         -- PLACE, OPEN, END, FINISH -->     its other ranks
    a stage                          -- gradient of a wave -->           the same stage of other replicas

Whoever waits, for whatever it is, takes meanwhile what comes. So a push that waits for a slot gets one: of the pushes that have their places
the next one to be taken was sent to all before it had its place, and those without one get theirs where rank 0 waits, or begins a compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.ps.order import Grant, Place, Sequencer, Stages
from mpidml.runtime.credited import N_NUMBERS, Credited, Words
from mpidml.runtime.stepping import clock_now

PLACE, GRANT, STOP, OPEN, END, FINISH = range(6)
"""Words: replica, whether it counts; replica, wave, weight; the wave before which all end; wave, version, clock reached, weight; none; whether the run pauses."""


class Opened(NamedTuple):
    """A wave that reads what was there after `version` pushes, when all had `reached` that clock; its gradient is multiplied by `weight`."""

    wave: int
    version: int
    reached: int
    weight: float


class Wish:
    """What rank 0 wants of a run, `stop` or a pause: what came first."""

    def __init__(self) -> None:
        self.wants, self.pauses = "", False

    def stop(self, pause: bool = False) -> None:
        """Let each replica end with the wave that it computes, or where waves have a quorum, with the open one."""
        self.wants = self.wants or ("pause" if pause else "end")


class Order:
    """The order on this rank, whose stages push and take by the exchanges of `row`, that of the first stage first.

    `first`: the rank has the first stage of its replica; `leads`: of replica 0. `told`: waves that are opened, and None for the end, where the rank is not
    `first`; there `grants` are the waves that a gate has granted. `placed(place)` is called of each push that is taken.
    """

    def __init__(self, strategy: Any, row: Sequence[Credited]) -> None:
        self.strategy, self.row, self.waiting, self.replica = strategy, list(row), strategy.waiting, strategy.at["data"]
        self.first, self.leads = strategy.pipeline.rank == 0, strategy.comm.rank == 0
        self.stages = Stages([exchange.server for exchange in self.row], self.first)
        self.across, self.down = Words(strategy.replicas, 0), Words(strategy.pipeline, 0)
        self.by_clock = strategy.policy.commit == "clock"
        self.placed: Callable[[Place], None] = lambda place: None
        self.begin((0,) * strategy.n_workers)
        self.waiting.meanwhile = self.serve

    def begin(self, turns: Sequence[int], until: int = 0, pause_at: int = 0) -> None:
        """Start where each replica has pushed so many waves: up to wave `until`, with a pause once all have done `pause_at` in the mean (0: never)."""
        self.until, self.pause_at, self.n_come = until, pause_at, 0
        self.told, self.grants = deque[Opened | None](), deque[Grant]()
        self.finished, self.said_stop, self.began = -1, False, False
        self.sequencer = Sequencer(self.strategy.policy, turns)
        for exchange in self.row:
            exchange.server.begin(turns)
        self.row[0].arrived = [] if self.leads else None

    def serve(self) -> None:
        """Take what has come: words, pushes, and what is due of these."""
        for word in (self.across if self.first else self.down).heard():
            self._hear(word)
        for exchange in self.row:
            exchange.serve()
        if self.leads:
            self._lead()
        taken, freed = self.stages.advance(clock_now())
        for exchange, replicas in zip(self.row, freed, strict=True):
            for replica in replicas:
                exchange.let_go(replica)
        self.n_come += len(taken)
        for place in taken:
            if self.first:
                self.down.say(PLACE, *place)
            self.placed(place)

    def _lead(self) -> None:
        """Give places to what has arrived, and tell of the end that rank 0 wants."""
        arrived, self.row[0].arrived = self.row[0].arrived, []
        for replica, wave in arrived or ():
            for word in self.sequencer.pushed(clock_now(), replica, wave):
                self._say(*((PLACE, *word) if isinstance(word, Place) else (GRANT, *word)))
        strategy, wish, done = self.strategy, self.strategy.coordinator, self.sequencer.clocks
        if not self.began or wish is None or self.finished >= 0:
            return
        if strategy.over is not None and strategy.over(clock_now()):
            wish.stop()
        if self.pause_at and sum(done.completed) >= self.pause_at * strategy.n_workers:
            wish.stop(pause=True)
        if wish.wants and not self.said_stop:
            self.said_stop = True
            self._say(STOP, done.reached + 1 if self.by_clock else 0)

    def _say(self, *word: float) -> None:
        self.across.say(*word)
        self._hear(list(word))

    def _hear(self, word: Sequence[float]) -> None:
        kind, a, b, c, weight = (*word, *[0.0] * (N_NUMBERS - len(word)))
        self.n_come += 1
        if kind == PLACE:
            self.stages.place(Place(int(a), bool(b)))
        elif kind == GRANT and int(a) == self.replica:
            self.grants.append(Grant(int(a), int(b), c))
        elif kind == STOP:
            self.until = min(self.until, int(a))
        elif kind == OPEN:
            self.told.append(Opened(int(a), int(b), int(c), weight))
            for exchange in self.row:
                exchange.server.open(int(a), int(b))
        elif kind == END:
            self.told.append(None)
        elif kind == FINISH:
            self.finished = int(a)
            if self.first:
                self.down.say(FINISH, a)

    def lead(self) -> None:
        """Say once, where a gate decides, with which wave each replica begins."""
        if self.leads and not self.began:
            self.began = True
            for grant in self.sequencer.begin():
                self._say(GRANT, *grant)

    def open(self, wave: int, weight: float) -> Opened:
        """Open a wave on the first stage: here it reads what is taken by now, on other stages the same."""
        server = self.row[0].server
        found = Opened(wave, server.latest, server.clocks.reached, weight)
        for exchange in self.row:
            exchange.server.open(wave, found.version)
        self.down.say(OPEN, *found)
        self.serve()
        return found

    def leave(self) -> None:
        """Tell the replica's other ranks that there is no next wave."""
        self.down.say(END)

    def late(self) -> str:
        """Say for whom a wave waits."""
        clocks = self.row[0].server.clocks
        return ", ".join(f"replica {r} has pushed {clocks.completed[r]}" for r in clocks.slowest()[:3])

    def end(self, n_pushed: int) -> bool:
        """Wait until all replicas have ended and all is taken that they have pushed, this one `n_pushed`; return whether the run only pauses (Collective on comm)."""
        strategy, counts = self.strategy, np.zeros(self.strategy.comm.size, np.int64)
        strategy.comm.compare("the number of pushes", patiently=lambda ready: self._patiently(ready, "all replicas to end"))
        request = strategy.comm.mpi.Iallgather(np.array([n_pushed], np.int64), counts)
        self._patiently(request.Test, "all replicas to end")
        total = sum(int(counts[strategy.grid.rank(data=replica)]) for replica in range(strategy.n_workers))
        if self.leads:
            self._patiently(lambda: self.sequencer.n_placed == total, "all pushes")
            wish, clocks = strategy.coordinator, self.sequencer.clocks
            done = clocks.reached if self.by_clock else min(clocks.completed)
            wish.pauses, wish.wants = wish.wants != "end" and done < strategy.n_clocks, ""
            self._say(FINISH, wish.pauses)
        self._patiently(lambda: self.finished >= 0 and all(exchange.server.latest == total for exchange in self.row), "all pushes")
        return bool(self.finished)

    def _patiently(self, ready: Callable[[], bool], what: str) -> None:
        """Wait for as long as something comes now and then."""
        while not ready():
            before = self.n_come
            self.waiting.until(lambda before=before: self.n_come > before or ready(), lambda: f"{what}; {self.late()}")

    def free(self) -> None:
        """Free the rows of words (Collective on all ranks)."""
        self.waiting.meanwhile = lambda: None
        self.across.free()
        self.down.free()
