"""The server role: one shard of one table. A pull waits until the policy lets it be read; everything else is counting.

States of a pull:   asked --(reached >= oldest readable)--> served
                      \\--(otherwise)--> parked under the clock that frees it --(that clock is reached)--> served

O(1) a message: `Clocks` knows the minimum, and parked pulls lie under the clock that frees them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mpidml.core.clocks import ENDED
from mpidml.core.role import CLOCK, END, LAST, NOTHING, PULL, PUSH, ROWS, Array, Effect, Effects, Lease, Message, Passive, Send, Stop, Waiting, new
from mpidml.ps.store import PLAIN, Store
from mpidml.sync.base import SyncPolicy, Tuning


class Shard(Passive):
    """Serve one shard to `workers` (role numbers) under `policy`.

    `repeat`: deltas count by clock in worker order, and a read at clock c shows exactly version max(0, oldest readable), so that the same
    layout gives the same bits. `tuned`: updates are softened for their staleness by the policy's rule. `allocate(nbytes)` gives a buffer
    for a reply. `store` None: payloads carry no values (large simulations). `shown` (one int64, in a window of the host) tells readers in place
    which clock the values show now. `clock`: all have completed that many, as a run that goes on has.
    `rate(batch)`: what the learning rate is multiplied by for a share of that global batch.
    """

    def __init__(
        self,
        name: str,
        workers: Iterable[int],
        policy: SyncPolicy,
        store: Store | None,
        allocate: Callable[[int], Any] | None = None,
        *,
        repeat: bool = False,
        tuned: bool = False,
        in_place: bool = False,
        eager: bool = False,
        shown: Array | None = None,
        clock: int = 0,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        self.name, self.policy, self.store, self.allocate = name, policy, store, allocate
        self.repeat, self.tuned, self.in_place, self.eager = repeat, tuned, in_place, eager
        self.answers = store is not None and not in_place  # with values
        self.by_clock = repeat or policy.commit == "clock"
        self.ahead = policy.asks_ahead
        self.clocks = policy.clocks(workers)
        if clock:
            self.clocks.begin(clock)
        self.order = {w: i for i, w in enumerate(self.clocks.workers)}
        self.active = len(self.order)
        self.counted = array("q", [0]) * len(self.clocks.completed)
        self.early: dict[tuple[int, int], Message] = {}
        self.held: dict[int, list[tuple[int, Message]]] = {}
        self.freed = clock
        self.parked: dict[int, list[tuple[int, Message, float]]] = {}
        self.spoke = array("d", [0.0]) * len(self.counted)
        self.asked: dict[int, dict[tuple[int, int], Message]] = {}
        self.writing = set(self.order)
        # Without a bound the slowest worker may be any number of clocks behind, and yet its share is all that a read lacks: there an update's
        # staleness is what the others have added since it was read for, in clocks of all workers.
        self.by_updates = tuned and policy.bound is None and not self.by_clock
        self.n_ended = 0
        self.read_at: dict[tuple[int, int], int] = {}
        self.shown, self.rate = shown, rate

    def start(self, now: float) -> Effects:
        """Wait for messages."""
        self.spoke = array("d", [now]) * len(self.counted)
        self.clocks.start(now)
        return NOTHING

    def handle(self, now: float, source: int, message: Message) -> Effects:
        """Serve or park a pull; count a push, clock or end in the order in which it was sent."""
        self.spoke[source] = now
        if message.kind == PULL:
            return self._pull(now, source, message)
        if message.counted != self.counted[source] + 1:
            self.early[source, message.counted] = message
            return NOTHING
        effects = self._take(now, source, message)
        while self.early and (late := self.early.pop((source, self.counted[source] + 1), None)):
            effects = [*effects, *self._take(now, source, late)]
        return effects

    def _pull(self, now: float, source: int, message: Message) -> Effects:
        wanted = self.policy.oldest_readable(message.clock, source, self.clocks)
        if wanted < message.version:  # which is 0 or more
            wanted = message.version
        if self.eager and message.rows is None and wanted < ENDED:
            self.asked.setdefault(source, {})[message.lo, message.hi] = message
        if self.clocks.reached < wanted:
            if wanted in self.parked:
                self.parked[wanted].append((source, message, now))
            else:
                self.parked[wanted] = [(source, message, now)]
            return NOTHING
        return (self._rows(source, message, wanted),)

    def _rows(self, source: int, message: Message, wanted: int, ticket: int | None = None, freed_by: int = -1) -> Send:
        _, clock, number, _, _, lo, hi, rows, data, _, batch = message
        version = wanted if self.repeat else self.clocks.reached
        if version == ENDED:
            version = self.clocks.highest  # everybody has written all he had to
        if ticket is not None:
            number = ticket
        elif self.by_updates:
            self.read_at[source, clock] = self.n_ended
        if self.answers:
            data, batch = self._values(source, message, version)
        return new(Send, (source, new(Message, (ROWS, freed_by, number, self.counted[source], version, lo, hi, rows, data, False, batch))))

    def _values(self, source: int, message: Message, version: int) -> tuple[Lease | None, int]:
        """Return the payload of an answer and its `batch` (see `Message`)."""
        return self.store.read(version if self.by_clock else 0, message, self.allocate), -1  # type: ignore[arg-type, union-attr]

    def _take(self, now: float, source: int, message: Message) -> Effects:
        self.counted[source] = message.counted
        kind, clock = message.kind, message.clock
        if kind == PUSH:
            if message.data is not None:
                if self.by_clock:
                    self.held.setdefault(clock, []).append((source, message))
                elif self.store is not None:
                    self._apply(self.store, (message,), self._staleness(source, message))
            if not message.ends:
                return NOTHING
        elif kind == LAST:
            return self._last(source)
        elif kind == END:
            effects = [*self._last(source), Send(source, Message(END))]
            self.active -= 1
            return effects if self.active else [*effects, Stop()]
        else:
            assert kind == CLOCK
        if self.by_updates:
            self.n_ended += 1
            self.read_at.pop((source, clock), None)
            if self.in_place:  # the next compute begins about now, and reads what is there now
                self.read_at[source, clock + 1] = self.n_ended
        if message.ticket < 0:
            return self._moved(source) if self.clocks.tick(source, now, clock + 1) else NOTHING
        question = new(Message, (PULL, clock + self.ahead, message.ticket, 0, 0, -1, -1, None, None, False, -1))
        if self.ahead == 1:  # what nothing could answer before is parked first, and answered with the others if this is the last one
            first = self._pull(now, source, question)
            return [*first, *self._moved(source)] if self.clocks.tick(source, now, clock + 1) else first
        if self.clocks.tick(source, now, clock + 1):
            return [*self._moved(source), *self._pull(now, source, question)]
        return self._pull(now, source, question)

    def _last(self, source: int) -> Effects:
        """Wait for this worker no more."""
        if source not in self.writing:
            return NOTHING
        self.writing.discard(source)
        self.asked.pop(source, None)
        return self._moved(source) if self.clocks.end(source) else NOTHING

    def _staleness(self, source: int, message: Message) -> float:
        """Return how many clocks old the values are that a delta was computed from."""
        if self.by_updates and (before := self.read_at.get((source, message.clock))) is not None:
            return (self.n_ended - before) / len(self.order)
        return message.clock - message.version

    def _tuning(self, staleness: float) -> Tuning:
        return self.policy.tuning(staleness) if self.tuned and staleness else PLAIN

    def _apply(self, store: Store, deltas: Sequence[Message], staleness: float) -> None:
        tuning = self._tuning(staleness)
        if self.rate is not None and deltas:
            tuning = tuning._replace(rate=tuning.rate * self.rate(max([delta.batch for delta in deltas])))
        store.apply(deltas, tuning)

    def _moved(self, by: int) -> Effects:
        """Answer what the last tick or end, that of worker `by`, made answerable."""
        reached = self.clocks.reached
        if self.shown is not None:
            self.shown[0] = reached
        if self.by_clock:
            self._commit(self.clocks.highest if reached == ENDED else reached)
        effects: list[Effect] = []
        for wanted in sorted(self.parked) if reached == ENDED else range(self.freed + 1, reached + 1):
            for source, message, _ in self.parked.pop(wanted, ()):
                effects.append(self._rows(source, message, wanted, freed_by=by))
        self.freed = reached
        for source, questions in self.asked.items():
            effects += [self._rows(source, question, reached, -1, by) for question in questions.values()]
        return effects

    def _commit(self, reached: int) -> None:
        """Close all clocks below `reached`, each in worker order, as one version each."""
        if self.store is None:
            self.held.clear()
            return
        for clock in range(self.store.latest, reached):
            held = self.held.pop(clock, [])
            if len(held) > 1:
                held.sort(key=lambda pair: self.order[pair[0]])
            deltas = [message for _, message in held]
            staleness = clock - min([m.version for m in deltas]) if deltas else 0
            self._apply(self.store, deltas, staleness)

    def waiting(self, now: float) -> list[Waiting]:
        """Report blocked pulls: table, rows, who asks, the clock wanted, who is behind and since when."""
        found = []
        for wanted, pulls in self.parked.items():
            until = f"clock {wanted}" if wanted < ENDED else "the last clock of everybody"
            for source, message, since in pulls:
                what = f"row {message.rows[0]} and {message.rows.size - 1} more" if message.rows is not None and message.rows.size else "all rows"
                slowest = tuple(self.clocks.slowest()[:3])
                behind = ", ".join(
                    f"worker {self.order[w]} is at clock {self.clocks.completed[w]} and last spoke {now - self.spoke[w]:.1f} s ago" for w in slowest
                )
                found.append(
                    Waiting(
                        since,
                        f"table {self.name}: pull of {what} by worker {self.order[source]} waits for {until} since {now - since:.1f} s; {behind}",
                        slowest,
                    )
                )
        return sorted(found)

    def state(self) -> dict[str, Array]:
        """Return values and optimizer state of the latest version."""
        if self.store is None:
            return {}
        return {"values": self.store.at(self.store.latest), **self.store.optimizer}
