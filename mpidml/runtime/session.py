"""The role of a worker whose program is a plain function: each call performs effects, each wait drives messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml.core.buffers import Buffers
from mpidml.core.role import END, NOTHING, Array, Effects, Lease, Message, Stop, Waiting
from mpidml.ps.client import Client
from mpidml.ps.ticket import Ticket
from mpidml.runtime.driver import Driver


class Reading:
    """A read that was asked for; `wait` returns its values (rows x width)."""

    def __init__(self, session: Session, ticket: Ticket, out: Array) -> None:
        self.session, self.ticket, self.out = session, ticket, out

    @property
    def done(self) -> bool:
        """Whether the values have come; looks for messages first."""
        self.session.driver.poll()
        return self.ticket.done

    def wait(self) -> Array:
        """Wait until the policy lets the values be read, serving this rank's shards meanwhile; return them."""
        self.session.driver.run_until(lambda: self.ticket.done)
        self.session.client.take(self.ticket)
        if self.ticket.version >= 0:  # no row was asked for
            self.session.read[self.ticket.table] = self.ticket.version
        return self.out


class Writing:
    """A write that was sent; `wait` returns when its servers, or under a budget the backlog, have taken it out of the sender's memory."""

    def __init__(self, session: Session, buffer: Any) -> None:
        self.session, self.buffer = session, buffer

    def wait(self) -> None:
        """Wait, serving this rank's shards meanwhile."""
        if self.buffer is not None:
            self.session.driver.run_until(lambda: not self.buffer.busy())


class Session:
    """The role of a worker whose program is a plain function: each call performs effects, each wait drives messages."""

    driver: Driver

    def __init__(self, client: Client, buffers: Buffers | None = None) -> None:
        self.client, self.buffers = client, buffers or Buffers()
        self.read: dict[int, int] = {}  # table -> version of the values last taken, which its gradients are computed from

    def attach(self, driver: Driver) -> None:
        """Start to send and receive."""
        self.driver = driver
        self.me = next(number for number, role in driver.roles.items() if role is self)
        driver.begin()

    def pull(
        self, table: int, rows: Array | None = None, out: Array | None = None, block: tuple[int, int] | None = None, latest: bool = False
    ) -> Reading:
        """Ask for rows; see `Table.pull`."""
        spec = self.client.tables[table]
        n = rows.size if rows is not None else block[1] - block[0] if block is not None else spec.n_rows
        out = np.empty((n, spec.width), spec.dtype) if out is None else out
        at_least = self.client.clock if latest else 0
        ticket, effects = self.client.pull(self.driver.now(), table, out, rows=rows, block=block, at_least=at_least)
        self.driver.perform(self.me, effects)
        return Reading(self, ticket, out)

    def push(self, table: int, delta: Array, rows: Array | None = None, block: tuple[int, int] | None = None) -> Writing:
        """Send a delta; it is copied, so the caller may change it at once."""
        spec = self.client.tables[table]
        flat = np.ascontiguousarray(delta, spec.dtype).ravel()
        buffer = None
        if rows is not None or not flat.size:
            lease = Lease(flat)  # listed rows are gathered for each shard, which copies them
        else:
            buffer = self.buffers.allocate(flat.nbytes)
            lease = buffer.lease(buffer.array(spec.dtype, flat.size))
            lease.array[:] = flat
        clock = self.client.clock
        self.driver.perform(self.me, self.client.push(table, lease, rows=rows, block=block, version=min(self.read.get(table, clock), clock)))
        self.driver.perform(self.me, self.client.flush(self.driver.now()))
        self.driver.poll()
        return Writing(self, buffer)

    def clock(self) -> None:
        """End this worker's clock for all tables."""
        self.driver.perform(self.me, self.client.tick(self.driver.now()))
        self.driver.poll()
        if not self.client.open():  # under a budget, where clocks must not mix
            self.driver.run_until(self.client.open)

    def close(self) -> None:
        """Take what was asked for, leave, and serve this rank's shards until every worker has left."""
        self.driver.run_until(lambda: not self.client.tickets)
        self.driver.perform(self.me, self.client.end(self.driver.now()))
        self.driver.run_until(self.driver.finished)
        self.driver.end()

    def start(self, now: float) -> Effects:
        return NOTHING

    def handle(self, now: float, source: int, message: Message) -> Effects:
        if message.kind == END:
            return (Stop(),) if self.client.farewell(source) else NOTHING
        self.client.answer(now, source, message)
        return NOTHING

    def done(self, now: float, result: Any) -> Effects:
        return NOTHING

    def part(self, now: float, lo: int, hi: int) -> Effects:
        return NOTHING

    def timer(self, now: float) -> Effects:
        return self.client.flush(now)

    def landing(self, source: int, message: Message) -> Array | None:
        return self.client.landing(source, message)

    def waiting(self, now: float) -> list[Waiting]:
        return self.client.waiting(now)

    def state(self) -> dict[str, Array]:
        return {}
