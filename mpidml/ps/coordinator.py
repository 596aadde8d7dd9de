"""The coordinator role: say who computes which block of samples next, and, where the policy has a gate, when. One for a run, if it needs one.

    worker  --NEXT-->  which turn?  the policy's gate, else simply the next      turn t of worker w, fixed shares:  block t * n + w
            <-GRANT--  which block?                                              next free block:                   0, 1, 2, ...
            <-GRANT (no block)      all blocks are given out, or `stop` was called: leave

A run needs one for `--assign dynamic`, for an end at a target or a time, and for the policies adaptive and quorum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mpidml.core.role import GRANT, LOAD, NEXT, NOTHING, Array, Effect, Effects, Message, Passive, Record, Send, Stop, Waiting
from mpidml.sync.base import Gate, Start

LOAD_UNITS, WEIGHT_UNITS = 1_000_000, 1_000_000_000
LEAVE, PAUSE = -1, -2
"""In place of a block: end with the final values, or stop where the run will go on."""


class Coordinator(Passive):
    """Serve `workers` (role numbers) until `n_turns` of each, or with `dynamic` as many blocks in all, are given out.

    `over(now)` is asked at each request whether to end, besides. `level`: on a stop, workers with shares of their own end at the same turn; for
    policies that keep them near each other, so that the last updates are whole ones. A run that goes on has `given` so many turns to
    each worker, and its tables are at `clock`. At `pause_at` turns, of each if they are level, else in
    the mean, all stop for the run to go on later. `by_clock`: a turn of the gate is a clock of the tables.
    """

    def __init__(
        self,
        workers: Sequence[int],
        n_turns: int,
        dynamic: bool = False,
        gate: Gate | None = None,
        level: bool = False,
        over: Callable[[float], bool] | None = None,
        *,
        given: Sequence[int] = (),
        clock: int = 0,
        pause_at: int = 0,
        by_clock: bool = False,
    ) -> None:
        self.workers, self.n_turns, self.dynamic, self.gate, self.level, self.over = list(workers), n_turns, dynamic, gate, level, over
        self.index = {role: w for w, role in enumerate(self.workers)}
        self.given = list(given) or [0] * len(self.workers)
        self.first, self.clock, self.pause_at, self.by_clock = list(self.given), clock, pause_at, by_clock
        self.turns = [0] * len(self.workers)
        self.n_sent = [0] * len(self.workers)
        self.n_given = sum(self.given)
        self.furthest = -1
        self.stopped = self.pauses = False
        self.active = set(range(len(self.workers)))
        self.since: dict[int, float] = {}

    def turns_done(self) -> tuple[int, ...]:
        """Return the turns with which each worker goes on; where they are clocks of its share all go on together, also one that was late and skipped some."""
        return (max(self.given),) * len(self.given) if self.by_clock and not self.dynamic else tuple(self.given)

    def stop(self, pause: bool = False) -> None:
        """Give out no more than it takes to end well, or to pause; what came first decides which."""
        if not self.stopped:
            self.stopped, self.pauses = True, pause

    def start(self, now: float) -> Effects:
        """Wait for requests."""
        return NOTHING

    def handle(self, now: float, source: int, message: Message) -> Effects:
        """Take a request or a load; grant what may start now."""
        worker, gate = self.index[source], self.gate
        if self.over is not None and not self.stopped and self.over(now):
            self.stop()
        if worker not in self.active:
            return NOTHING  # it was told to leave while this was on its way
        if gate is None:
            turn = self.turns[worker]
            self.turns[worker] = turn + 1
            return self._grant((Start(worker, turn, turn),))
        if message.kind == LOAD:
            gate.loaded(now, worker, message.lo / LOAD_UNITS)
        else:
            assert message.kind == NEXT
            gate.ready(now, worker, message.clock - self.clock if message.clock >= 0 else -1, message.lo / LOAD_UNITS)
            self.since[worker] = now
        effects: list[Effect] = []
        while granted := list(gate.starts(now)):
            effects += self._grant(granted)  # one that leaves may let others start
        effects += [Record("quota", note) for note in gate.notes]
        gate.notes.clear()
        return effects

    def _grant(self, starts: Iterable[Start]) -> list[Effect]:
        effects: list[Effect] = []
        for worker, clock, turn, staleness, weight, counts, freed_by in starts:
            if worker not in self.active:
                continue  # was told to leave by a start before this one
            block = self._block(worker, turn)
            self.since.pop(worker, None)
            role = self.workers[worker]
            by = self.workers[freed_by] if freed_by >= 0 else -1
            self.n_sent[worker] += 1
            message = Message(GRANT, self.clock + clock, by, self.n_sent[worker], staleness if block >= 0 else -1, block, round(weight * WEIGHT_UNITS), ends=counts)
            effects.append(Send(role, message))
            if block < 0:
                self.active.discard(worker)
                if self.gate is not None:
                    self.gate.leave(worker)
                if not self.active:
                    effects.append(Stop())
        return effects

    def _block(self, worker: int, turn: int) -> int:
        """Return the block of a turn, LEAVE or PAUSE."""
        n, turn, in_line = len(self.workers), self.first[worker] + turn, self.level and not self.dynamic
        if self.n_given >= self.n_turns * n if self.dynamic else turn >= self.n_turns:
            return LEAVE
        if self.pause_at and (turn if in_line else self.n_given // n) >= self.pause_at:
            self.stop(pause=True)
        if self.stopped and not (in_line and turn <= self.furthest):
            return PAUSE if self.pauses else LEAVE
        self.furthest = max(self.furthest, turn)
        self.given[worker] = self.given[worker] + 1 if self.dynamic else turn + 1  # a turn may be a clock of the tables
        self.n_given += 1
        return self.n_given - 1 if self.dynamic else turn * n + worker

    def waiting(self, now: float) -> list[Waiting]:
        """Report workers that may not start yet, and whom they wait for."""
        why = self.gate.waiting() if self.gate is not None else ""
        return sorted(Waiting(since, f"worker {w} asks for its next clock since {now - since:.1f} s; {why}") for w, since in self.since.items())

    def state(self) -> dict[str, Array]:
        """Return nothing yet saved by itself."""
        return {}
