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


class Coordinator(Passive):
    """Serve `workers` (role numbers) until `n_turns` of each, or with `dynamic` as many blocks in all, are given out.

    `over(now)` is asked at each request whether to end, besides. `level`: on a stop, workers with shares of their own end at the same turn; for
    policies that keep them near each other, so that the last updates are whole ones.
    """

    def __init__(
        self,
        workers: Sequence[int],
        n_turns: int,
        dynamic: bool = False,
        gate: Gate | None = None,
        level: bool = False,
        over: Callable[[float], bool] | None = None,
    ) -> None:
        self.workers, self.n_turns, self.dynamic, self.gate, self.level, self.over = list(workers), n_turns, dynamic, gate, level, over
        self.index = {role: w for w, role in enumerate(self.workers)}
        self.turns = [0] * len(self.workers)
        self.n_sent = [0] * len(self.workers)
        self.n_given = 0
        self.furthest = -1
        self.stopped = False
        self.active = set(range(len(self.workers)))
        self.since: dict[int, float] = {}

    def stop(self) -> None:
        """Give out no more than it takes to end well."""
        self.stopped = True

    def start(self, now: float) -> Effects:
        """Wait for requests."""
        return NOTHING

    def handle(self, now: float, source: int, message: Message) -> Effects:
        """Take a request or a load; grant what may start now."""
        worker, gate = self.index[source], self.gate
        if self.over is not None and not self.stopped and self.over(now):
            self.stopped = True
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
            gate.ready(now, worker, message.clock, message.lo / LOAD_UNITS)
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
            message = Message(GRANT, clock, by, self.n_sent[worker], staleness, block, round(weight * WEIGHT_UNITS), ends=counts)
            effects.append(Send(role, message))
            if block < 0:
                self.active.discard(worker)
                if self.gate is not None:
                    self.gate.leave(worker)
                if not self.active:
                    effects.append(Stop())
        return effects

    def _block(self, worker: int, turn: int) -> int:
        """Return the block of a turn, -1 to leave."""
        n = len(self.workers)
        if self.dynamic:
            if self.stopped or self.n_given == self.n_turns * n:
                return -1
            self.n_given += 1
            return self.n_given - 1
        if turn >= self.n_turns or (self.stopped and not (self.level and turn <= self.furthest)):
            return -1
        self.furthest = max(self.furthest, turn)
        return turn * n + worker

    def waiting(self, now: float) -> list[Waiting]:
        """Report workers that may not start yet, and whom they wait for."""
        why = self.gate.waiting() if self.gate is not None else ""
        return sorted(Waiting(since, f"worker {w} asks for its next clock since {now - since:.1f} s; {why}") for w, since in self.since.items())

    def state(self) -> dict[str, Array]:
        """Return nothing yet saved by itself."""
        return {}
