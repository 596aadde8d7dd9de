"""Let replicas of a pipeline push in one order, under policies that bound no gap or drop who is late: a rank's updates and steps around `order`.

    first stage     opens its next wave as soon as the policy lets it: under asp at once, under a quorum when the wave before is closed
    other stages    read what was there where it was opened
    each            pushes, into one of a few slots that have to be free in all replicas, and for nothing else a push waits
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from mpidml.core.role import Array
from mpidml.ps.order import OrderedServer, Place
from mpidml.runtime.credited import Credited
from mpidml.runtime.held import Held
from mpidml.runtime.order import Opened, Order
from mpidml.runtime.stepping import clock_now
from mpidml.runtime.waves import WaveStepper, WaveUpdates

SLEEP_SECONDS = 5e-4
"""Of a rank that is slow on purpose, between looks at what has come."""


class OrderedUpdates(WaveUpdates):
    """Push the gradients of this rank's stages; take all pushes in the one order; let each wave read what was there where its first stage opened it."""

    exchanges: dict[int, Credited]

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy)
        self.order, self.gated = Order(strategy, list(self.exchanges.values())), strategy.policy.gate_at != ""
        self.open_now: dict[int, Opened] = {}
        self.n_pushed = 0

    def _exchange(self, held: Held) -> Credited:
        strategy = self.strategy
        server = OrderedServer(strategy.policy, strategy.n_workers, held.store, strategy.n_flight + 1, strategy.job.tune, strategy.rates)
        return Credited(strategy.replicas, held, server, self.waiting)

    def begin(self, turns: Sequence[int], until: int = 0, pause_at: int = 0) -> None:  # type: ignore[override]
        """Start as `Order.begin` says."""
        self.open_now.clear()
        for there in self.there.values():
            there.begin()
        self.n_pushed = 0
        self.order.begin(turns, until, pause_at)

    def next_wave(self, clock: int) -> int:
        """Open the replica's next wave, number `clock` unless the policy's gate says another, and return it; -1 where there is none."""
        self.order.lead()
        opened = self._learn(clock, may_end=True)
        return -1 if opened is None else opened.wave

    def _learn(self, clock: int, may_end: bool) -> Opened | None:
        """On the first stage open the next wave as soon as the policy lets it start, or tell of the end; on others learn of it."""
        began = clock_now()
        order = self.order
        if order.first:
            found = self._open_next(clock, may_end)
        else:
            self.waiting.until(lambda: bool(order.told), lambda: "the next wave, from the replica's first stage")
            found = order.told.popleft()
        if found is not None:
            self.open_now[found.wave] = found
            if (trace := self.strategy.trace) is not None:
                trace.add("pull", began, clock_now() - began, found.wave)
        return found

    def _open_next(self, clock: int, may_end: bool) -> Opened | None:
        order, server = self.order, self.order.row[0].server
        wave, weight = clock, 1.0

        def may_start() -> bool:
            nonlocal wave, weight
            order.serve()
            if self.gated:
                if not order.grants:
                    return False
                wave, weight = max(order.grants[0].wave, server.clocks.reached), order.grants[0].weight
            return (may_end and wave >= order.until) or server.start(self.replica, wave)

        self.waiting.until(may_start, lambda: f"the start of wave {wave}; {self.order.late()}")
        if may_end and wave >= order.until:
            order.leave()
            return None
        if self.gated:
            order.grants.popleft()
        return order.open(wave, weight)

    def open(self, wave: int) -> bool:
        """Learn what a wave reads; return whether that was new."""
        if wave in self.open_now:
            return False
        found = self._learn(wave, may_end=False)
        assert found is not None and found.wave == wave
        return True

    def _read(self, held: Held, wave: int) -> Array:
        server = self.exchanges[held.number].server

        def there() -> bool:
            self.order.serve()
            return server.read(wave) is not None

        self.waiting.until(there, lambda: f"what wave {wave} reads of stage {held.number}; {self.order.late()}")
        found: Array = server.read(wave)
        return found

    def _push(self, held: Held, wave: int) -> None:
        opened, exchange = self.open_now[wave], self.exchanges[held.number]
        if (trace := self.strategy.trace) is not None:
            trace.add("push", clock_now(), 0.0, wave, held.gradient.nbytes)
        exchange.push(wave, opened.reached if self.order.by_clock else opened.version)
        exchange.server.close(wave)
        self.n_pushed += exchange is self.order.row[0]
        self.open_now = {old: found for old, found in self.open_now.items() if old >= wave - self.strategy.n_flight}
        self.order.serve()

    def finish(self, held: Held, item: int) -> None:
        """Measure and push, if that is not done, and take what has come."""
        super().finish(held, item)
        self.order.serve()

    def drain(self, wave: int) -> None:
        """Let the newest values be read; all is taken."""
        for exchange in self.order.row:
            exchange.held.reads.clear()

    def free(self) -> None:
        """Free the requests (Collective on all ranks)."""
        self.order.free()
        super().free()


class OrderedStepper(WaveStepper):
    """Run the steps of one rank whose replica goes on with the waves that its first stage opens; a clock is told of once it has its place."""

    make_updates = OrderedUpdates

    def __init__(self, strategy: Any, *rest: Any) -> None:
        super().__init__(strategy, *rest)
        self.rows = deque[tuple[float, tuple[Any, ...]]]()
        self.updates.order.placed = self._placed

    def _steps(self) -> bool:
        updates, order = self.updates, self.updates.order
        while (wave := updates.next_wave(self.clock)) >= 0:
            self.clock = wave
            self._step()
            if (now := clock_now()) - self.looked_at > self.look_seconds:
                self.looked_at = now
                self.look(now)
        pauses = order.end(updates.n_pushed)
        if order.by_clock:
            self.clock = self.part.step = order.row[0].server.clocks.reached
        return bool(pauses)

    def _sleep(self, seconds: float) -> None:
        """Sleep, and take meanwhile what comes."""
        end = clock_now() + seconds
        while (left := end - clock_now()) > 0:
            self.updates.order.serve()
            time.sleep(min(left, SLEEP_SECONDS))

    def _weight(self, clock: int) -> float:
        opened = self.updates.open_now.get(clock)
        return 1.0 if opened is None else opened.weight

    def _staleness(self, clock: int) -> int:
        return max(0, clock - int(self.updates.open_now[clock].reached))

    def _tell(self, now: float, row: tuple[Any, ...]) -> None:
        self.rows.append((now, row))

    def _placed(self, place: Place) -> None:
        if place.replica == self.updates.replica and self.rows:
            now, (clock, staleness, _, *rest) = self.rows.popleft()
            super()._tell(now, (clock, staleness, place.counts, *rest))
