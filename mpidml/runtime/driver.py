"""Interpret roles on MPI: move messages, call roles, run computes, and sleep without spinning when there is nothing to do.

A rank hosts one role or several. One persistent receive takes every header; data of ranks of the same host stay in the sender's window
(see `memory`), other data arrive where the receiving role wants them. Waiting: spin 30 us, then sleep until rung by a rank of this host,
or nap at most half a millisecond where ranks of other hosts may send. Messages that come while a role computes are handled between its
kernels, at the points where it reports.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.core.buffers import Buffers
from mpidml.core.current_wait import MAIN, Wait
from mpidml.core.errors import WaitTimeout
from mpidml.core.role import PUSH, ROWS, After, Array, Compute, Effects, Lease, Message, Record, Role, Send, Stop, told
from mpidml.runtime import wire
from mpidml.runtime.bell import Bell
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.memory import WindowBuffer, WindowBuffers

clock_now = time.perf_counter
SPIN_SECONDS, NAP_SECONDS = 30e-6, 5e-4
LONG_SLEEP_SECONDS, LOOK_SECONDS = 0.05, 0.25


class Driver:
    """Run `roles` (number -> role) of this rank; `rank_of[number]` says where each role of the job lives (Collective on comm).

    `buffers`: the pool whose buffers may stay in the window (None: all data go by MPI). `record(role, seconds, name, value)` takes what
    roles note. `look(now)` is called every `look_seconds`. A wait above `wait_limit_seconds` raises WaitTimeout.
    """

    def __init__(
        self,
        comm: CountedComm,
        roles: dict[int, Role],
        rank_of: Sequence[int],
        buffers: WindowBuffers | None = None,
        bell: Bell | None = None,
        record: Callable[[int, float, str, tuple[float, ...]], None] | None = None,
        look: Callable[[float], None] | None = None,
        wait_limit_seconds: float = 300.0,
        chunk_nbytes: int = wire.CHUNK_NBYTES,
        by_window: bool = True,
        trace: Any = None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self.comm, self.roles, self.rank_of, self.buffers, self.bell = comm, roles, rank_of, buffers, bell
        self.record, self.wait_limit_seconds, self.chunk_nbytes, self.by_window = record, wait_limit_seconds, chunk_nbytes, by_window
        self.trace, self.look, self.look_seconds = trace, look if look is not None else (lambda now: None), look_seconds
        self.many, self.name, self.host_rank_of = comm.size > 1, f"[rank {comm.rank}/{comm.size}]", comm.host_rank_of
        self.pool = Buffers()  # for what arrives by MPI and has no place of its own
        self.header = bytearray(wire.HEADER_NBYTES)
        self.free_headers: list[bytearray] = []
        self.sending: deque[tuple[Any, bytearray | None, Lease | None]] = deque()
        self.receiving: deque[tuple[list[Any], int, int, Message]] = deque()
        self.arrived: deque[tuple[int, int, Message]] = deque()
        self.todo: deque[tuple[int, Compute]] = deque()
        self.timers: list[tuple[float, int]] = []
        self.alive = self.nbytes_window = self.n_messages = 0
        self.compute_seconds = self.wait_seconds = self.serve_seconds = self.take_seconds = 0.0
        self.computing = -1
        self.longest_delay_seconds = self.polled_at = self.looked_at = self.polls_seconds = 0.0  # `polls_seconds`: within computes, in all

    def begin(self) -> None:
        """Take messages from now on and start the roles."""
        self.alive = len(self.roles)
        self.receive = self.comm.Recv_init(self.header, self.comm.ANY_SOURCE, wire.HEADER_TAG)
        self.receive.Start()
        self.polled_at = self.looked_at = clock_now()
        for me, role in self.roles.items():
            self.perform(me, role.start(clock_now()))

    def run(self) -> None:
        """Begin, and return when every role of this rank has stopped and all its messages have left."""
        self.begin()
        self.run_until(self.finished)
        self.end()

    def finished(self) -> bool:
        """Whether every role of this rank has stopped and all its messages have left."""
        return not self.alive and not self.sending and not self.arrived

    def now(self) -> float:
        """Read the clock that roles are given, in seconds."""
        return clock_now()

    def end(self) -> None:
        """Take no more messages; those on their way here have been delivered because their roles have stopped."""
        self.receive.Cancel()
        with self.comm.blocked("the end of messages"):
            self.receive.Wait()
        self.receive.Free()

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Serve until `condition()` holds."""
        idle_since = 0.0
        while not condition():
            now = clock_now()
            happened = self.poll()
            if self.todo or happened:
                if idle_since:
                    self._waited(idle_since, now)
                    idle_since = 0.0
                if self.todo:
                    self._compute(*self.todo.popleft())
            elif not idle_since:
                idle_since = now
            elif now - idle_since > SPIN_SECONDS:
                worked = self.serve_seconds + self.take_seconds
                if self._sleep(now - idle_since):
                    self._waited(idle_since, clock_now() - (self.serve_seconds + self.take_seconds - worked))
                    idle_since = 0.0
            if now - self.looked_at > self.look_seconds:
                self._look(now)
        MAIN.now = None
        if idle_since:
            self._waited(idle_since, clock_now())

    def _waited(self, since: float, now: float) -> None:
        self.wait_seconds += now - since
        if self.trace is not None:
            self.trace.add("wait", since, now - since)

    def _sleep(self, idle_seconds: float) -> bool:
        """Sleep a share of the time already idle, or until rung; return whether something came or was announced: then spin anew."""
        if self.bell is None or self.buffers is None or self.receiving or self.sending:
            time.sleep(min(NAP_SECONDS, max(2e-5, idle_seconds / 8)))
            return False
        flag = self.buffers.asleep[self.buffers.rank]
        flag[0] = 1  # before the last look, so that no ring is lost
        self.buffers.fence()
        sleep_seconds = min(LONG_SLEEP_SECONDS, max(self.timers[0][0] - clock_now(), 0.0)) if self.timers else LONG_SLEEP_SECONDS
        happened = self.poll() or self.bell.wait(sleep_seconds)
        flag[0] = 0
        return happened

    def _look(self, now: float) -> None:
        self.looked_at = now
        self.look(now)
        waits = [wait for role in self.roles.values() for wait in role.waiting(now)[:1]]
        longest = min(waits, default=None)
        MAIN.now = None if longest is None else Wait(longest.text, longest.since)
        if longest is not None and now - longest.since > self.wait_limit_seconds:
            raise WaitTimeout(f"{self.name} {told(waits, self.roles).text}; the limit is {self.wait_limit_seconds:g} s (--wait-limit)")

    def _compute(self, me: int, compute: Compute) -> None:
        self.computing, before, MAIN.now = me, self.polls_seconds, None
        start = self.polled_at = clock_now()
        result = compute.function(compute.turn, self._report if self.many else None)
        now = clock_now()
        self.computing = -1
        self.compute_seconds += now - start - (self.polls_seconds - before)
        if self.trace is not None:
            self.trace.add("compute", start, now - start, compute.clock)
        self.longest_delay_seconds = max(self.longest_delay_seconds, now - self.polled_at)
        self.perform(me, self.roles[me].done(now, result))

    def _report(self, lo: int, hi: int) -> None:
        """Between two kernels of a compute: elements [lo, hi) of its result are final (lo == hi: nothing new); serve the other roles."""
        start = clock_now()
        self.longest_delay_seconds = max(self.longest_delay_seconds, start - self.polled_at)
        if lo < hi:
            self.perform(self.computing, self.roles[self.computing].part(start, lo, hi))
        self.poll()
        self.polled_at = clock_now()
        self.polls_seconds += self.polled_at - start

    def perform(self, me: int, effects: Effects) -> None:
        """Carry out what role `me` asked for."""
        for effect in effects:
            if type(effect) is Send:
                target, message = effect
                rank = self.rank_of[target]
                if self.trace is not None and message.kind == PUSH:
                    self.trace.add("push", clock_now(), 0.0, message.clock, 0 if message.data is None else message.data.array.nbytes, rank)
                if rank != self.comm.rank:
                    self._send(me, target, rank, message)
                    continue
                if message.data is not None:
                    message.data.lend()
                self.arrived.append((target, me, message))
            elif type(effect) is Compute:
                self.todo.append((me, effect))
            elif type(effect) is After:
                heapq.heappush(self.timers, (clock_now() + effect.seconds, me))
            elif type(effect) is Record:
                if self.record is not None:
                    self.record(me, clock_now(), effect.name, effect.value)
            elif type(effect) is Stop:
                self.alive -= 1

    def _send(self, me: int, target: int, rank: int, message: Message) -> None:
        data = message.data
        header = self.free_headers.pop() if self.free_headers else bytearray(wire.HEADER_NBYTES)
        host_rank = self.host_rank_of[rank]
        in_window = data is not None and host_rank >= 0 and self.by_window and type(data.buffer) is WindowBuffer
        if in_window:
            data.buffer.lend()  # type: ignore[union-attr]
            self.nbytes_window += data.array.nbytes  # type: ignore[union-attr]
            wire.pack(header, message, me, target, data.buffer.base, data.offset)  # type: ignore[union-attr]
        else:
            wire.pack(header, message, me, target)
        self.sending.append((self.comm.Isend(header, rank, wire.HEADER_TAG), header, None))
        if message.rows is not None:
            for piece in wire.pieces(message.rows, self.chunk_nbytes):
                self.sending.append((self.comm.Isend(piece, rank, wire.BODY_TAG), None, None))
        if data is not None and not in_window:
            lent = data.lend()
            for piece in wire.pieces(data.array, self.chunk_nbytes):
                self.sending.append((self.comm.Isend(piece, rank, wire.BODY_TAG), None, None))
            # The lease ends when the last piece has left.
            self.sending.append((None, None, lent))
        if self.bell is not None and host_rank >= 0 and self.buffers is not None and self.buffers.asleep[host_rank][0]:
            self.bell.ring(host_rank)

    def poll(self) -> bool:
        """Move bytes, deliver what has come and call timers that are due; return whether anything happened."""
        sending, receiving, arrived, began = self.sending, self.receiving, self.arrived, clock_now()
        while self.timers and self.timers[0][0] <= began:
            _, me = heapq.heappop(self.timers)
            self.perform(me, self.roles[me].timer(clock_now()))
        while sending:
            request, header, lease = sending[0]
            if request is not None and not request.Test():
                break
            sending.popleft()
            if header is not None:
                self.free_headers.append(header)
            if lease is not None:
                lease.release()
        happened = False
        while self.many and self.receive.Test():
            envelope = wire.unpack(self.header)
            self.receive.Start()
            happened = True
            receiving.append(self._expect(envelope))
        while receiving:
            requests, target, source, message = receiving[0]
            while requests and requests[-1].Test():
                requests.pop()
            if requests:
                break
            receiving.popleft()
            arrived.append((target, source, message))
        if not arrived:
            return happened
        served = 0.0
        while arrived:
            target, source, message = arrived.popleft()
            start = clock_now()
            effects = self.roles[target].handle(start, source, message)
            now = clock_now()
            served += now - start
            self.n_messages += 1
            if self.trace is not None and message.kind == PUSH:
                self.trace.add("apply", start, now - start, message.clock)
            if effects:
                self.perform(target, effects)
            if now - self.looked_at > 2 * self.look_seconds and self.computing < 0:  # a long queue, which the loop around this does not see the end of
                self.looked_at, before = now, clock_now()
                self.look(now)
                began += clock_now() - before
        self.serve_seconds, self.take_seconds = self.serve_seconds + served, self.take_seconds + clock_now() - began - served
        return True

    def _expect(self, envelope: wire.Envelope) -> tuple[list[Any], int, int, Message]:
        """Post the receives of a message's buffers, or look into the sender's window."""
        message, source, target, n_rows, nbytes, base, offset = envelope
        rank = self.rank_of[source]
        requests: list[Any] = []
        if n_rows >= 0:
            rows = np.empty(n_rows, np.int64)
            requests += [self.comm.Irecv(piece, rank, wire.BODY_TAG) for piece in wire.pieces(rows, self.chunk_nbytes)]
            message = message._replace(rows=rows)
        if nbytes >= 0:
            if base >= 0:
                assert self.buffers is not None
                lease = self.buffers.remote(self.host_rank_of[rank], base, offset, nbytes)
            else:
                lease = self._landing(target, source, message, nbytes)
                requests += [self.comm.Irecv(piece, rank, wire.BODY_TAG) for piece in wire.pieces(lease.array, self.chunk_nbytes)]
            message = message._replace(data=lease)
        requests.reverse()
        return requests, target, source, message

    def _landing(self, target: int, source: int, message: Message, nbytes: int) -> Lease:
        landing: Array | None = self.roles[target].landing(source, message) if message.kind == ROWS else None
        if landing is not None:
            return Lease(landing)
        buffer = self.pool.allocate(nbytes)
        buffer.lend()
        return Lease(buffer.array(np.uint8, nbytes), buffer.back)
