"""Let replicas of a pipeline push to servers of each stage and go on, where others meet in a sum: messages around `ps.waves`, a rank's steps.

    replica 0   stage 0 [server] -- version of wave c --> stage 1 [server]     the first stage waits for the policy and chooses; the others wait
                    |  gradients of wave c  |                 |                until their server has that version: all stages read the same
    replica 1   stage 0 [server] -----------------------> stage 1 [server]

Gradients go into slots whose receives are posted ahead: as far as the policy's bound lets a replica run, so that a push waits for nobody's steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidml.core.action import Action
from mpidml.core.role import Array
from mpidml.ps.waves import Push, StageServer
from mpidml.runtime.grid_updates import Updates
from mpidml.runtime.held import Held
from mpidml.runtime.read_there import ReadThere
from mpidml.runtime.staged_training import GridStepper
from mpidml.runtime.stepping import clock_now

HEADER_NBYTES = 16
"""In front of a gradient: its wave, and the version that it was computed from."""


class Exchange:
    """The server of one stage on this rank, and the messages between it and those of the other replicas (Collective on `comm`, a rank of each).

    The k-th message of a replica lies in slot k % `n_slots` until its wave is closed. With 2 D + 2, where a replica may be D waves ahead, a push
    finds a receive: the slowest stage that it meets has not pushed wave c - D yet, may be about to begin it, and has closed all below c - 2 D - 1.
    """

    def __init__(self, comm: Any, held: Held, server: Any, waiting: Any, n_slots: int) -> None:
        self.comm, self.held, self.server, self.waiting, self.n = comm, held, server, waiting, n_slots
        self.first = 0  # the wave of the first message, as if there had been no pause
        self.n_taken = [0] * comm.size
        self.others = [rank for rank in range(comm.size) if rank != comm.rank]
        self.slots = np.zeros((comm.size, self.n, HEADER_NBYTES + held.gradient.nbytes), np.uint8)
        tag = comm.new_tag()
        self.sends = [[comm.Send_init(slot, rank, tag) for rank in self.others] for slot in self.slots[comm.rank]]
        self.receives = {rank: [comm.Recv_init(slot, rank, tag) for slot in self.slots[rank]] for rank in self.others}
        for requests in self.receives.values():
            for request in requests:
                request.Start()

    def begin(self, wave: int) -> None:
        """Start where all replicas have pushed all waves below `wave`."""
        self.first = wave - self.n_taken[self.comm.rank]
        self.server.begin(wave)

    def serve(self) -> None:
        """Take the pushes that are here."""
        for rank in self.others:
            while (k := self.n_taken[rank]) < self.server.latest - self.first + self.n and self.receives[rank][k % self.n].Test():
                self._take(rank)

    def push(self, wave: int, version: int) -> None:
        """Send the stage's gradient of a wave to the other replicas, and take it here."""
        k = (wave - self.first) % self.n
        for request, rank in zip(self.sends[k], self.others, strict=True):
            self.waiting.until(request.Test, lambda rank=rank: f"replica {rank} to take the gradient of wave {wave - self.n}")
        self._write(self.slots[self.comm.rank, k], wave, version)
        for request in self.sends[k]:
            request.Start()
        self._take(self.comm.rank)

    def _write(self, slot: Array, wave: int, version: int) -> None:
        """Leave the stage's gradient in a slot, which may be sent then: one that lies on a device is waited for."""
        gradient = self.held.gradient
        slot[:HEADER_NBYTES].view(np.int64)[:] = wave, version
        room = slot[HEADER_NBYTES:].view(gradient.dtype)
        if isinstance(gradient, np.ndarray):
            room[:] = gradient
        elif gradient.size:
            gradient.get(out=room)

    def until(self, version: int) -> None:
        """Wait until a version is there."""

        def there() -> bool:
            self.serve()
            return bool(self.server.latest >= version)

        self.waiting.until(there, lambda: f"version {version} of stage {self.held.number}; {self.server.late()}")

    def _take(self, rank: int) -> None:
        slot = self.slots[rank, self.n_taken[rank] % self.n]
        self.n_taken[rank] += 1
        wave, version = slot[:HEADER_NBYTES].view(np.int64).tolist()
        for closed in self.server.push(clock_now(), rank, wave, Push(version, slot[HEADER_NBYTES:].view(self.held.gradient.dtype))):
            for requests in self.receives.values():
                requests[(closed - self.first) % self.n].Start()

    def free(self) -> None:
        """Free the requests; nobody pushes any more."""
        with self.comm.blocked("the last gradients"):
            for requests in self.sends:
                for request in requests:
                    request.Wait()
                    request.Free()
        for receives in self.receives.values():
            for request in receives:
                request.Cancel()
                request.Wait()
                request.Free()


class WaveUpdates(Updates):
    """Push the gradients of this rank's stages, and let each wave read the version that its replica's first stage has chosen."""

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy)
        self.waiting, self.pipeline, self.replica, self.bound = strategy.waiting, strategy.pipeline, strategy.at["data"], strategy.policy.bound
        self.exchanges = {s: self._exchange(held) for s, held in strategy.held.items()}
        on = strategy.net.device.kernels
        self.there = {s: ReadThere(on, strategy.n_flight, held.stage.n_params, held.stage.dtype) for s, held in strategy.held.items() if on is not None}
        self.tag = self.pipeline.new_tag()
        self.versions: dict[int, int] = {}  # of the waves in flight
        self.going: list[tuple[Any, Array]] = []

    def _exchange(self, held: Held) -> Any:
        strategy, job = self.strategy, self.strategy.job
        server = StageServer(strategy.policy, strategy.n_workers, held.store, job.tune, job.deterministic, strategy.rates)
        return Exchange(strategy.replicas, held, server, self.waiting, 2 * self.bound + 2)

    def begin(self, wave: int) -> None:
        """Start where all is pushed and closed below `wave`."""
        self.versions.clear()
        for there in self.there.values():
            there.begin()
        for exchange in self.exchanges.values():
            exchange.begin(wave)

    def open(self, wave: int) -> bool:
        """Learn which version a wave reads: on the first stage choose it, as soon as the policy lets the wave start. Return whether that was new."""
        if wave in self.versions:
            return False
        began = clock_now()
        if self.pipeline.rank == 0:
            version = self._chosen(wave)
            told = np.array([version], np.int64)
            self.going = [(request, sent) for request, sent in self.going if not request.Test()]
            self.going += [(self.pipeline.Isend(told, rank, self.tag), told) for rank in range(1, self.pipeline.size)]
        else:
            told, first = np.empty(1, np.int64), self.strategy.grid.line("pipe", self.strategy.comm.rank)[0]
            request = self.pipeline.Irecv(told, 0, self.tag)
            self.waiting.until(request.Test, lambda: f"the version that wave {wave} reads, from rank {first}, the replica's first stage")
            version = int(told[0])
        self.versions = {old: found for old, found in self.versions.items() if old >= wave - self.bound - 1} | {wave: version}
        if (trace := self.strategy.trace) is not None:
            trace.add("pull", began, clock_now() - began, wave)
        return True

    def _chosen(self, wave: int) -> int:
        first, version = self.exchanges[0], -1

        def may_start() -> bool:
            nonlocal version
            first.serve()
            version = first.server.choose(self.replica, wave)
            return bool(version >= 0)

        self.waiting.until(may_start, lambda: f"the start of wave {wave}; {first.server.late()}")
        return version

    def weights(self, held: Held, wave: int) -> Any:
        """Return what a wave that is open reads of a stage, once it is there, where it is computed with."""
        found = self._read(held, wave)
        return self.there[held.number].bring(wave, found) if self.there else found

    def _read(self, held: Held, wave: int) -> Array:
        exchange, version = self.exchanges[held.number], self.versions[wave]
        exchange.until(version)
        found: Array = exchange.server.read(version)
        return found

    def version(self, held: Held, action: Action) -> Any:
        """Return the weights that a microbatch reads: those of its wave."""
        wave = self.clock + action.item // self.strategy.n_items
        if self.open(wave):
            self.strategy.driver.be_slow((wave,))
        return self.weights(held, wave)

    def told(self, held: Held, item: int) -> int:
        """Return -1: the policy says which version a wave reads, not its program."""
        return -1

    def start(self, held: Held) -> None:
        """Push the gradient of the wave whose last microbatch is back, unless its norm is measured first."""
        if not self.links:
            self._push(held, self.clock + (held.n_summed - 1) // self.strategy.n_items)

    def finish(self, held: Held, item: int) -> None:
        """Measure and push, if that is not done, and take what has come; the weights change when a wave is closed."""
        if self.links:
            wave = self.clock + item // self.strategy.n_items
            held.reads[-1] = self.weights(held, wave)
            self._prepare(held, wave)
            self._push(held, wave)
        self.exchanges[held.number].serve()

    def _push(self, held: Held, wave: int) -> None:
        if (trace := self.strategy.trace) is not None:
            trace.add("push", clock_now(), 0.0, wave, held.gradient.nbytes)
        self.exchanges[held.number].push(wave, self.versions[wave])

    def drain(self, wave: int) -> None:
        """Wait until all waves below `wave` are closed, so that all replicas have the same; what is read then is the newest."""
        for exchange in self.exchanges.values():
            exchange.until(wave)
            exchange.held.reads.clear()

    def free(self) -> None:
        """Free the requests (Collective on all ranks)."""
        for request, _ in self.going:
            self.waiting.until(request.Test, lambda: "a version that was sent to be taken")
        for exchange in self.exchanges.values():
            exchange.free()


class WaveStepper(GridStepper):
    """Run the steps of one rank whose replica goes on by the policy."""

    make_updates = WaveUpdates

    def __init__(self, strategy: Any, *rest: Any) -> None:
        super().__init__(strategy, *rest)
        self.measured_to, self.fastest = (0.0, 0), 0.0

    def be_slow(self, clocks: Sequence[int]) -> None:
        """Sleep where a slow replica begins, by what its first rank takes to compute a clock at its fastest: all others wait for that one rank."""
        slowdown, executor = self.strategy.slowdown, self.executor
        if slowdown is None or self.strategy.pipeline.rank:
            return
        done = sum(executor.compute_seconds.values()), executor.n_computed[0]
        if done[1] > self.measured_to[1]:
            seconds, items = (now - before for now, before in zip(done, self.measured_to, strict=True))
            usual = seconds / items * self.strategy.n_items
            self.fastest = min(self.fastest or usual, usual)
            self.measured_to = done
        self._sleep(self.fastest * sum(slowdown.extra(self.task.worker, clock) for clock in clocks))

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _open(self, first: int, n: int) -> None:
        """Start the first wave; what is looked at is what it reads."""
        self.updates.open(first)
        for held in self.strategy.held.values():
            held.reads[-1] = self.updates.weights(held, first)
        self.be_slow((first,))

    def _staleness(self, clock: int) -> int:
        return clock - int(self.updates.versions[clock])
