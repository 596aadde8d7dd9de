"""The program of a worker that is a group of ranks (`groups`): the leader's, which servers know as any worker's, and the members'."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.optim.base import State
from mpidml.ps.task import Push, Turn
from mpidml.runtime import scoring
from mpidml.runtime.driver import LOOK_SECONDS, Driver
from mpidml.runtime.groups import PARTS, SCORE, STOP, TURN, Group, Word
from mpidml.runtime.training import Training

Report = Callable[[int, int], None]


class GroupTraining(Training):
    """The program of a worker that is a group, on its leader, and on each member what the leader's word asks for."""

    def __init__(self, strategy: Any, worker: int) -> None:
        """Allocate, and prepare the sums (Collective on the group)."""
        self.group: Group = strategy.group
        self.handed: list[Array] = strategy.views  # where members read the parameters
        super().__init__(strategy, worker)
        self.total, self.loss = self._total(), self.group.collective.allocate(1, np.float64)
        self.sums = self.group.sums = [self.group.plan(self.total), self.group.collective.plan(self.loss)]
        self.block, self.slot, self.fresh = 0, 0, False
        self.report: Report | None = None

    def compute(self, turn: Turn, report: Report | None) -> tuple[Sequence[Push], tuple[float, ...]]:
        """Push the gradient of the group's whole share."""
        self.block, self.report = turn.block, report
        pushes, (loss, _, *measured) = super().compute(turn, report)
        return pushes, (loss, super()._rows(turn.block).size, *measured)

    def finish(self, turn: Turn, report: Report | None) -> dict[str, scoring.Scores]:
        """Score the final parameters together."""
        self.report = report
        return super().finish(turn, report)

    def help(self, word: Word, idle: Callable[[], None]) -> None:
        """Do a member's part of what the leader's word asks for."""
        strategy, self.slot, self.block = self.strategy, word.slot, word.block
        w = self.handed[word.slot]
        if word.follows:
            self.group.take(w, idle)
        if word.kind == SCORE:
            self._tell(self.score(w, PARTS[word.of]), idle)
            return
        rows, batch = self._rows(word.block), word.block // strategy.n_workers
        if self.feed is not None and rows.size:
            self.fed = self.feed.block(word.block, rows)
        self.report = lambda _lo, _hi: idle()
        self._sum_up(rows, batch, w, self.total, word.scale, self.report)

    def score(self, w: Array, of: str) -> scoring.Scores:
        """Score the group's rows: on the leader all together, if members listen, on a member its part."""
        if not (self.group.leads and self.group.listening):
            return super().score(w, of)
        self._say(SCORE, of=PARTS.index(of))
        found = [super().score(w, of)]
        for member in range(1, self.group.comm.size):
            found.append(self._told(member))
        return joined(found)

    def _tell(self, found: scoring.Scores, idle: Callable[[], None]) -> None:
        data = np.frombuffer(pickle.dumps(found), np.uint8)
        request = self.group.comm.Isend(data, 0, self.group.score_tag)
        self.group.until(request.Test, lambda: self.group.late([0]), idle)

    def _told(self, member: int) -> scoring.Scores:
        probes: list[Any] = []

        def came() -> bool:
            if (message := self.group.comm.mpi.improbe(member, self.group.score_tag)) is not None:
                probes.append(message)
            return bool(probes)

        rank = self.group.ranks[member]
        self.group.until(came, lambda: f"worker {self.worker} waits for the scores of rank {rank} of its group,", self._idle)
        found: scoring.Scores = probes[0].recv()
        return found

    def _idle(self) -> None:
        if self.report is not None:
            self.report(0, 0)

    def _say(self, kind: int, scale: float = 0.0, of: int = 0) -> None:
        if self.fresh:
            self._hand()
        follows, self.fresh = self.fresh and self.group.sends, False
        self.group.say(Word(kind, self.block, scale, self.slot, of, follows), self.handed[self.slot] if follows else None)

    def _flats(self) -> list[Array]:
        self.handed = self.group.flats(self.net.n_params, self.net.dtype)
        return self.handed

    def _state(self) -> State | None:
        return super()._state() if self.group.leads else None

    def _total(self) -> Any:
        """Return the place of this rank's gradient, which is summed."""
        return self.group.collective.allocate(self.net.n_params, self.net.dtype)

    def _hand(self) -> None:
        """Let `handed` have what was read into this step's slot: it is the same memory."""

    def _leave(self, g: Array) -> None:
        """Leave the sum in `g`."""
        g[:] = self.total

    def _parameters(self, turn: Turn) -> Array:
        self.slot, self.fresh = turn.step % 2 if self.flats else turn.versions[0] % self.strategy.copies, True
        return super()._parameters(turn)

    def _rows(self, block: int) -> Array:
        rows = super()._rows(block)
        lo, hi = self.group.part(rows.size)
        return rows[lo:hi]

    def _scored(self, n: int) -> tuple[int, int]:
        lo, hi = super()._scored(n)
        if not self.group.listening:
            return lo, hi
        first, end = scoring.share(hi - lo, self.group.comm.rank, self.group.comm.size)
        return lo + first, lo + end

    def _sum_up(self, rows: Array, batch: int, w: Array, g: Array, scale: float, report: Report | None) -> float:
        """Leave the sum of all members' gradients in `g`; return the sum of their losses."""
        group = self.group
        if group.leads:
            self._say(TURN, scale)
        if not rows.size:
            self.total.fill(0)
        self.loss[0] = super()._sum_up(rows, batch, w, self.total, scale, report) if rows.size else 0.0
        for each in self.sums:
            each.start()
        for each in self.sums:
            group.until(each.test, lambda each=each: group.late(each.late()), self._idle)  # type: ignore[misc]
        if group.leads:
            self._leave(g)
        return float(self.loss[0])


def joined(parts: Sequence[scoring.Scores]) -> scoring.Scores:
    """Join the scores of neighbouring rows."""
    losses, scores = tuple(loss for of in parts for loss in of.losses), tuple(score for of in parts for score in of.scores)
    heads = tuple(joined(each) for each in zip(*(of.heads for of in parts), strict=True))
    return scoring.Scores(losses, scores, sum(of.n_rows for of in parts), heads)


class LeaderDriver(Driver):
    """Drive the roles of a leader's rank, and let its members stop where they do."""

    def __init__(self, group: Group, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.group = group

    def run(self) -> None:
        """Run all roles; members listen as long."""
        self.group.listening, before = True, self.group.waited_seconds
        super().run()
        self.group.listening = False
        self.group.say(Word(STOP))
        waited = self.group.waited_seconds - before
        self.compute_seconds -= waited
        self.wait_seconds += waited


class Member:
    """Do what the leader's word asks for; to the run around it, what `driver.Driver` is: `run`, and what was counted."""

    nbytes_window = n_messages = 0
    take_seconds = polls_seconds = 0.0
    serve_seconds = longest_delay_seconds = 0.0

    def __init__(self, task: GroupTraining, look: Callable[[float], None], look_seconds: float = LOOK_SECONDS) -> None:
        self.task, self.group, self.look, self.look_seconds = task, task.group, look, look_seconds
        self.roles: dict[int, Any] = {}
        self.compute_seconds = self.wait_seconds = self.looked_at = 0.0

    def run(self) -> None:
        """Listen until the leader's word is to stop, where the run pauses or ends."""
        self.group.listening = True
        trace, n = self.task.strategy.trace, self.task.strategy.n_workers
        while True:
            since = time.perf_counter()
            word = self.group.hear(self._idle)
            began, asleep = time.perf_counter(), self.group.waited_seconds
            if word.kind != STOP:
                self.task.help(word, self._idle)
            ended = time.perf_counter()
            self.compute_seconds += ended - began - (self.group.waited_seconds - asleep)
            self.wait_seconds += began - since + self.group.waited_seconds - asleep
            if trace is not None:
                trace.add("wait", since, began - since)
                if word.kind == TURN:
                    trace.add("compute", began, ended - began, word.block // n)
            if word.kind == STOP:
                self.group.listening = False
                return

    def _idle(self) -> None:
        """Pass on now and then what a signal asks this rank for."""
        if (now := time.perf_counter()) - self.looked_at > self.look_seconds:
            self.looked_at = now
            self.look(now)
