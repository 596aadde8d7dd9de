"""The worker role: read, compute, push, clock - as often as it is granted, then read the final values and leave.

compute c  =====part=====part====|  done: push the rest, clock     The read of c + 1 is asked for when compute c starts and
read c+1   ?-------------------------!                             answered when the policy allows; so it flies meanwhile.
                                 |  compute c+1  =====

Who grants: nobody (n_clocks of its own share), or the coordinator, asked beforehand with the read; where the policy has a gate, it is told of each compute that has
ended, and the read follows the grant. A gate at the start may grant steps ahead, so that reads fly meanwhile; a gate at the push is asked before the gradient is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpidml.core.clocks import ENDED
from mpidml.core.role import GRANT, LOAD, NEXT, NOTHING, ROWS, After, Array, Compute, Effect, Effects, Message, Record, Send, Stop, Waiting, new
from mpidml.ps.client import SERVERS_FIRST_SECONDS, UNUSED, Client
from mpidml.ps.coordinator import LOAD_UNITS, PAUSE, WEIGHT_UNITS
from mpidml.ps.task import Push, Task, Turn
from mpidml.ps.ticket import Ticket
from mpidml.ps.waits import Tally

LOAD_STEP = 0.05
NO_TICKETS: Sequence[Ticket] = ()


class Worker:
    """Run `task` over the tables of `client`, for `n_clocks` clocks as number `index` of `n_workers`, or as the role `coordinator` grants.

    `traced` records how long each read took; `load(now)` is the share of CPU that other processes take. `tally` counts for whom (a worker that ended its clock late, a
    server that answered late) it stood idle; many workers may add to one. `seen()`, where tables are read in place, is the clock that all of them show: later, perhaps.
    """

    __slots__ = (  # one of 100,000 workers of a simulation is small
        "admitted", "after", "ahead", "answered_at", "begun_at", "client", "coming", "computing", "coordinator", "done_at", "early", "ended", "gated", "granted_by",
        "index", "last", "leaving", "load", "load_told", "n_clocks", "n_grants", "n_workers", "next", "pauses", "result", "rides", "seen", "staleness", "step",
        "steps_in_clock", "tally", "task", "traced", "turn", "unsent", "watch_at", "watch_seconds"
    )  # fmt: skip

    def __init__(
        self,
        client: Client,
        task: Task,
        n_clocks: int,
        traced: bool = False,
        *,
        index: int = 0,
        n_workers: int = 1,
        coordinator: int = -1,
        load: Callable[[float], float] | None = None,
        seen: Callable[[], int] | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.client, self.task, self.n_clocks, self.traced, policy = client, task, n_clocks, traced, client.policy
        self.index, self.n_workers, self.coordinator, self.load, self.seen = index, n_workers, coordinator, load, seen
        self.gated, self.admitted = policy.gate_at != "", policy.gate_at == "push"
        self.steps_in_clock = policy.gate_at == "start"  # a clock of the tables holds several steps; the gate says when it ends
        self.watch_seconds = policy.watches_seconds if load is not None else 0.0
        # A held copy is looked at when the read is due; only a question to the servers can fly during a compute.
        self.early = not self.gated and all(table.reads == "fresh" for table in client.tables)
        # A question rides on the push that ends a clock where only that makes the read possible, or it is known what follows.
        foreseen = policy.asks_ahead == 1 or (coordinator < 0 and not policy.timed and client.prompt)
        self.rides = policy.asks_ahead if self.early and foreseen and len(client.tables) == 1 else 0
        self.computing = self.leaving = self.pauses = self.last = self.ended = False
        self.next: tuple[int, float] | None = None  # block and weight of the next turn
        self.ahead: dict[int, Message] = {} if coordinator >= 0 else UNUSED  # the grants of those after, by their numbers
        self.turn, self.step, self.n_grants, self.staleness, self.granted_by = Turn(0, 0, 0), 0, 0, -1, -1
        self.unsent: tuple[Sequence[Push], tuple[float, ...]] | None = None
        self.coming = self.after = NO_TICKETS  # of the next turn, and of the one after where that is asked for before the next began
        self.load_told = self.answered_at = self.begun_at = self.done_at = 0.0
        self.tally = Tally() if tally is None else tally
        self.result: Any = None

    def start(self, now: float) -> Effects:
        """Ask for the first read, or first for leave to start; one that goes on after its last clock, as others are behind, leaves."""
        self.done_at, self.watch_at = now, now + self.watch_seconds
        effects: list[Effect] = [After(self.watch_seconds)] if self.watch_seconds else []
        if self.coordinator >= 0:
            effects.append(self._ask_turn(now, -1))
        else:
            self.next, self.leaving = (self.step * self.n_workers + self.index, 1.0), self.step >= self.n_clocks
        if not self.gated and not self.leaving:
            self.coming = self._ask(now, effects, self.client.clock, self.step)
        self._begin_if_ready(now, effects)
        return effects

    def handle(self, now: float, source: int, message: Message) -> Effects:
        """Take an answer or a grant; begin to compute when it was the last that was missing. Stop when every shard has taken its leave."""
        if message[0] != ROWS:
            if message.kind == GRANT:
                return self._granted(now, message)
            return (Stop(),) if self.client.farewell(source) else NOTHING
        self.client.answer(now, source, message)
        for ticket in self.coming:
            if ticket.unanswered:
                return NOTHING
        self.answered_at = now
        if self.computing or self.next is None or self.ended:
            return NOTHING
        if not self.last:  # that the others have not come to their end yet makes nobody slow
            # Where a gate names who opened it, the ticks follow its grants: the last of them makes the read possible, but nobody waits for that one.
            culprit = self.granted_by if self.granted_by >= 0 else message.clock if message.clock >= 0 else source
            self.tally.wait(culprit, self.step, self.done_at, now)
        effects: list[Effect] = []
        self._begin(now, effects)
        return effects

    def _granted(self, now: float, message: Message) -> Effects:
        """Send or drop the gradient that waits for this grant, and begin if nothing else is missing; keep a grant ahead until its turn comes."""
        effects: list[Effect] = []
        if self.unsent is not None:
            self._close(now, effects, *self.unsent, counts=message.ends)
            self.unsent = None
        self.ahead[message.counted] = message
        if self.next is not None or self.n_grants + 1 not in self.ahead:  # one is read for already, or this one has overtaken it
            return effects
        self._accept(now, effects)
        if not self.computing and not any(ticket.unanswered for ticket in self.coming):
            if not self.leaving and (self.granted_by >= 0 or not self.gated):
                self.tally.wait(self.granted_by if self.granted_by >= 0 else self.coordinator, self.step, self.done_at, now)
            self._begin(now, effects)
        return effects

    def _accept(self, now: float, effects: list[Effect]) -> None:
        """Go to the clock of the next grant and read for it, or know that there is no more."""
        self.n_grants += 1
        message = self.ahead.pop(self.n_grants)
        self.next = (message.lo, message.hi / WEIGHT_UNITS)
        self.staleness, self.granted_by = message.version, message.ticket
        self.leaving, self.pauses = message.lo < 0, message.lo == PAUSE
        if self.gated:
            while self.steps_in_clock and self.client.clock < message.clock:
                effects += self.client.tick(now)
            self.client.jump(message.clock)
            if not self.leaving:
                self.coming = self._ask(now, effects, message.clock, self.step + self.computing)

    def _ask_turn(self, now: float, clock: int) -> Send:
        if self.load is not None and self.watch_seconds:
            self.load_told = self.load(now)
        return Send(self.coordinator, Message(NEXT, clock, lo=round(self.load_told * LOAD_UNITS)))

    def _ask(self, now: float, effects: list[Effect], clock: int, step: int, at_least: int = 0) -> Sequence[Ticket]:
        """Ask for what `step`, or what follows the last one, reads as of `clock`."""
        tickets = []
        for table, out, rows in self.task.last_reads(step) if at_least else self.task.reads(step):
            ticket, asked = self.client.pull(now, table, out, rows, None, clock, at_least)
            tickets.append(ticket)
            effects += asked
        return tickets

    def _ask_by_push(self, now: float, effects: list[Effect], step: int) -> Sequence[Ticket]:
        """Ask for what `step` reads by the push that ends this clock; for listed rows at once, and so from now on."""
        reads = self.task.reads(step)
        if len(reads) == 1 and (read := reads[0])[2] is None:
            return (self.client.ride(now, read[0], read[1]),)
        self.rides = 0
        return self._ask(now, effects, self.client.clock + self.client.ahead, step)

    def _begin_if_ready(self, now: float, effects: list[Effect]) -> None:
        if self.next is not None:
            for ticket in self.coming:
                if ticket.unanswered:
                    return
            self._begin(now, effects)

    def _begin(self, now: float, effects: list[Effect]) -> None:
        """Compute the next turn, or read the final values if there is none, or use these."""
        if self.leaving and not self.last:
            self.last, self.ended = True, self.pauses
            for ticket in self.coming:
                self.client.take(ticket)
            if self.pauses:  # no final values: the run goes on
                effects += [*self.client.last(now), *self.client.end(now)]
                return
            effects += [Record("left", ()), *self.client.last(now)]
            self.coming = self._ask(now, effects, self.client.clock, self.step, ENDED)
            self._begin_if_ready(now, effects)
            return
        step, client = self.step, self.client
        clock = oldest = client.clock
        versions: tuple[int, ...] = ()
        for ticket in self.coming:
            versions += (version := ticket.version,)
            if version < oldest:
                oldest = version
            if client.untaken:
                client.take(ticket)
        block, weight = self.next  # type: ignore[misc]
        turn = (step, clock, block, weight, versions, self.staleness if self.staleness >= 0 else clock - oldest)
        self.computing, self.begun_at, client.batch = True, now, block // self.n_workers
        if self.traced:
            effects.append(Record("pull", (clock, since := self.coming[0].since if self.coming else now, max(self.answered_at - since, 0.0))))
        if self.last:
            self.turn = Turn(*turn)
            effects.append(Compute(self.task.finish, self.turn, -1))
            return
        self.coming, self.after, self.next = self.after, NO_TICKETS, None
        if self.coordinator < 0:
            self.next, self.leaving = (block + self.n_workers, weight), step + 1 >= self.n_clocks
        elif self.n_grants + 1 in self.ahead:
            self._accept(now, effects)
        elif not self.gated:
            effects.append(self._ask_turn(now, clock))
        if not self.coming and self.early and not self.leaving:
            self.coming = self._ask_by_push(now, effects, step + 1) if self.rides == 1 else self._ask(now, effects, clock + 1, step + 1)
            if self.rides == 2 and any(ticket.pieces is not client.routing.whole[0] for ticket in self.coming):
                self.rides = 0  # listed rows are asked for by themselves
        effects.append(new(Compute, (self._compute, turn, step)))

    def _compute(self, turn: tuple[int, int, int, float, tuple[int, ...], int], report: Callable[[int, int], None]) -> Any:
        """Compute; where read in place from the values that are there now: newer perhaps than when it was allowed, and all there are where nobody else writes."""
        step, clock, block, weight, versions, staleness = turn
        if staleness and self.seen is not None and (self.staleness < 0 or self.n_workers == 1):
            missed = clock - self.seen() if self.n_workers > 1 else 0
            if missed < staleness:
                staleness = missed if missed > 0 else 0
        self.turn = new(Turn, (step, clock, block, weight, versions, staleness))
        return self.task.compute(self.turn, report)

    def part(self, now: float, lo: int, hi: int) -> Effects:
        """Push the shards of table 0 whose rows from `lo` (in elements) up are final."""
        delta = self.task.early()
        if delta is None:
            return NOTHING
        spec = self.client.tables[0]
        effects: list[Effect] = []
        for role, shard in enumerate(spec.shards, spec.first_role):
            if shard.lo * spec.width >= lo and not self.client.told >> role & 1:
                piece = delta.part(shard.lo * spec.width, shard.hi * spec.width)
                effects += self.client.push(0, piece, block=(shard.lo, shard.hi), ends=True, version=self.turn.versions[0])
        return effects

    def done(self, now: float, result: Any) -> Effects:
        """Push what is not pushed yet, which asks for what is read early and whole, end the clock, and begin the next one if its read has come."""
        self.computing, self.done_at = False, now
        self.tally.staleness[self.turn[5]] += 1
        if self.last:
            self.ended, self.result = True, result
            return self.client.end(now)
        if self.admitted:
            self.unsent = result
            return (self._ask_turn(now, self.client.clock),)
        effects: list[Effect] = []
        if self.rides == 2 and self.early and self.step + 2 < self.n_clocks and not self.client.told:
            self.after = self._ask_by_push(now, effects, self.step + 2)
        self._close(now, effects, result[0], result[1])
        if self.gated and not self.leaving:
            effects.append(self._ask_turn(now, self.client.clock))
        elif not self.early and not self.leaving:
            self.coming = self._ask(now, effects, self.client.clock, self.step)
        self._begin_if_ready(now, effects)
        return effects

    def _close(self, now: float, effects: list[Effect], pushes: Sequence[Push], measured: tuple[float, ...], counts: bool = True) -> None:
        """Send what a turn has computed, if it counts, and end its clock."""
        client, staleness = self.client, self.turn[5]
        clock, n_left = client.clock, len(pushes)
        if counts:
            if not pushes:
                effects += self.part(now, 0, 0)
            for table, delta, rows in pushes:
                n_left -= 1
                ends = not self.steps_in_clock and (not n_left or table not in [push.table for push in pushes[-n_left:]])  # the last of a clock to a table
                effects += client.push(table, delta, rows, None, ends, clock - staleness)
        effects.append(new(Record, ("clock", (clock, staleness, counts, self.done_at - self.begun_at, *measured))))
        self.step += 1
        if counts and not self.steps_in_clock:
            effects += client.tick(now)

    def timer(self, now: float) -> Effects:
        """Send what the client has kept back, and tell the coordinator when the load has changed since it was told."""
        effects = self.client.flush(now)
        if self.ended or self.last or self.load is None or not self.watch_seconds or now < self.watch_at:
            return effects
        self.watch_at = now + self.watch_seconds
        if abs((load := self.load(now)) - self.load_told) > LOAD_STEP:
            self.load_told = load
            effects.append(Send(self.coordinator, Message(LOAD, lo=round(load * LOAD_UNITS))))
        effects.append(After(self.watch_seconds))
        return effects

    def landing(self, source: int, message: Message) -> Array | None:
        """Receive answers where they are wanted."""
        return self.client.landing(source, message)

    def waiting(self, now: float) -> list[Waiting]:
        """Report reads and grants that are not answered; while it computes a worker waits for nothing."""
        if self.computing:
            return []
        found = [wait._replace(since=max(wait.since, self.done_at)) for wait in self.client.waiting(now)]
        if not found and self.next is None and not self.ended:
            text = f"worker {self.index} waits for the coordinator's leave to start its clock, since {now - self.done_at:.1f} s"
            found.append(Waiting(self.done_at + SERVERS_FIRST_SECONDS, text))
        return found

    def state(self) -> dict[str, Array]:
        """Return nothing yet saved by itself: parameters and optimizer live on the servers."""
        return {}
