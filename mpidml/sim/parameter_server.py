"""Run the roles of a parameter-server job on virtual clocks at any number of workers: payloads carry sizes only, a cost model says how long.

worker 0     compute ------>|push, clock|             one shard stands for all: shards that are alike see the same messages, so
worker 1     compute ->|push, clock|  wait            one is simulated, with its part of the bytes and of the update, and counts
shard        ......|apply|.|apply|..reply             as many times as there are
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpidml.core.clocks import ENDED
from mpidml.core.cost import CostModel
from mpidml.core.partition import shards
from mpidml.core.role import PUSH, ROWS, Effects, Lease, Message, Role, Send
from mpidml.core.slowdown import DRAWN_NBYTES, Slowdown
from mpidml.optim.base import make_chain
from mpidml.ps.client import Client
from mpidml.ps.coordinator import Coordinator
from mpidml.ps.routing import Routing
from mpidml.ps.shard import Shard
from mpidml.ps.table import TableSpec
from mpidml.ps.task import Push, Read, Turn
from mpidml.ps.waits import Tally, Waited
from mpidml.ps.worker import Worker
from mpidml.sim import virtual
from mpidml.sim.thinned import MOST_ROWS, Row, Thinned, joined
from mpidml.sync.base import SyncPolicy, Tuning

WORKER_NBYTES = 5000
"""Memory that a simulated worker takes, with its messages in flight; measured at 10,000 workers."""
SUMMING_NBYTES = 1400
"""Memory that one takes where gradients are summed, which sends no message; measured at 100,000 workers and 400,000."""
SERVER_NBYTES = 470
"""Memory that a server's name takes, which lies apart from all workers, in a summary."""
BASE_NBYTES = 80_000_000
"""Memory that a simulation takes by itself, the plot half of it."""


@dataclass(frozen=True)
class Plan:
    """What is simulated: `n_workers` doing `n_clocks` each (with `dynamic` as many blocks together), `n_shards` of `nbytes` in all (0: gradients are summed).

    `pushed`, `answer`: bytes of a gradient and of what is read, where codes of them travel (0: `nbytes`); a worker's first and last read are of all values.
    `colocated`: a server beside each worker, whose updates take time from its computes. `seconds`: end then, besides (0: no limit).
    """

    policy: SyncPolicy
    n_workers: int
    n_clocks: int
    cost: CostModel
    n_shards: int = 1
    nbytes: int = 8
    colocated: bool = False
    dynamic: bool = False
    seconds: float = 0.0
    seed: int = 0
    slowdown: Slowdown | None = None
    measured: Sequence[Sequence[float]] | None = None
    """Seconds of each worker's steps, in place of draws; they come round again."""
    pushed: int = 0
    answer: int = 0
    kept: int = 0
    """Memory that the arithmetic takes, where there is some."""

    @property
    def workers_nbytes(self) -> int:
        """Estimate the memory of the workers."""
        draws = DRAWN_NBYTES * (self.slowdown is not None and self.slowdown.name == "exponential")
        return self.n_workers * (draws + (WORKER_NBYTES if self.n_shards else SUMMING_NBYTES))

    @property
    def servers_nbytes(self) -> int:
        """Estimate the memory of servers that lie apart."""
        return 0 if self.colocated else self.n_shards * SERVER_NBYTES

    @property
    def memory_nbytes(self) -> int:
        """Estimate the memory that the simulation takes."""
        return BASE_NBYTES + self.workers_nbytes + self.servers_nbytes + self.kept


@dataclass
class Simulated:
    """What came of it: virtual `seconds`, clocks done by each worker, and per row of `rows` (seconds, clocks done by all, mean staleness)."""

    seconds: float = 0.0
    n_messages: int = 0
    nbytes: int = 0
    n_done: int = 0
    n_dropped: int = 0
    done_by: list[int] = field(default_factory=list)
    busy_seconds: list[float] = field(default_factory=list)
    left_seconds: list[float] = field(default_factory=list)
    staleness: dict[int, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    waited: dict[int, Waited] = field(default_factory=dict)
    quotas: Thinned = field(default_factory=Thinned)


class Sizes:
    """A worker's program that moves sizes alone: one read and one push of all parameters a step."""

    def __init__(self, n: int) -> None:
        self.result: tuple[Sequence[Push], tuple[float, ...]] = ((Push(0, _lease(n)),), ())
        self.read = (Read(0, None),)

    def reads(self, step: int) -> Sequence[Read]:
        return self.read

    last_reads = reads

    def compute(self, turn: Turn, report: Any) -> tuple[Sequence[Push], tuple[float, ...]]:
        return self.result

    def early(self) -> Lease | None:
        return None

    def finish(self, turn: Turn, report: Any) -> None:
        return None


class SizeStore:
    """Values of a shard of which only their size is known: an update changes nothing, a read is an array without memory."""

    def __init__(self, n: int) -> None:
        self.lease = _lease(n)
        self.latest = 0

    def apply(self, deltas: Sequence[Message], tuning: Tuning) -> None:
        self.latest += 1

    def read(self, version: int, message: Message, allocate: Any) -> Lease:
        return self.lease


class SizeShard(Shard):
    """A shard that answers by `n` elements, but with its values the first time and the last."""

    def __init__(self, *arguments: Any, n: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.answer, self.told = _lease(n), set[int]()

    def _values(self, source: int, message: Message, version: int) -> tuple[Lease | None, int]:
        if source not in self.told or message.version >= ENDED:
            self.told.add(source)
            return super()._values(source, message, version)
        return self.answer, -1


class Counting(Coordinator):
    """A coordinator that counts what it is told and what it tells."""

    n_messages = 0

    def handle(self, now: float, source: int, message: Message) -> Effects:
        effects = list(super().handle(now, source, message))
        self.n_messages += 1 + sum(type(effect) is Send for effect in effects)
        return effects


def _lease(n: int) -> Lease:
    """Return a lease of n elements of 8 bytes that take no memory."""
    return Lease(np.broadcast_to(np.zeros(1), (n,)))


def simulate(plan: Plan) -> Simulated:
    """Run `plan` to its end with payloads of sizes alone.

    Cost: 8 to 30 us a worker and clock by the machine, more where its caches hold less (100 to 10,000 workers). Raises WaitTimeout where the policy lets nobody go on.
    """
    n, policy = plan.n_workers, plan.policy
    n_elements, pushed, answer = (max((of or plan.nbytes) // 8 // plan.n_shards, 1) for of in (plan.nbytes, plan.pushed, plan.answer))
    spec = TableSpec("weights", n_elements, 1, np.dtype(np.float64), shards(n_elements, 1), 0, make_chain("sgd", 1.0), in_place=True)
    moves = plan.cost.bytes_per_second > 0
    server: Any = SizeShard("weights", range(1, n + 1), policy, SizeStore(n_elements) if moves else None, in_place=not moves, n=answer)
    routing, task = Routing([spec]), Sizes(pushed)
    tally = Tally()
    coordinated = bool(policy.gate_at or plan.dynamic or plan.seconds)
    options: dict[str, Any] = {"n_workers": n, "coordinator": n + 1 if coordinated else -1, "tally": tally}
    if not moves:
        options["seen"] = lambda: server.clocks.reached
    by_clock = policy.commit == "clock"
    roles: list[Role] = [server, *(Worker(Client(routing, policy, by_clock), task, plan.n_clocks, index=w, **options) for w in range(n))]
    if coordinated:
        gate = policy.gate(n, not plan.dynamic) if policy.gate_at else None
        over = (lambda now: now >= plan.seconds) if plan.seconds else None
        roles.append(Counting(range(1, n + 1), plan.n_clocks, plan.dynamic, gate, gate is None and policy.bound is not None, over))
    found = drive(plan, roles, 1, alike=plan.n_shards)
    found.waited = tally.waited
    return found


def drive(plan: Plan, roles: Sequence[Role], n_servers: int, note: virtual.Recorder | None = None, alike: int = 1) -> Simulated:
    """Run the roles of a plan, `n_servers` shards first, each of which stands for `alike`, and then the workers, and count; `note` is told what they record, too."""
    n, cost = plan.n_workers, plan.cost
    found = Simulated(left_seconds=[0.0] * n)
    every = n if plan.seconds else max(n, -(-n * plan.n_clocks // MOST_ROWS))
    since, stale = 0, 0

    done_by = array("q", [0]) * n

    def record(now: float, role: int, name: str, value: tuple[float, ...]) -> None:
        nonlocal since, stale, every
        if name == "clock":
            if value[2]:
                done_by[role - n_servers] += 1
                since, stale = since + 1, stale + int(value[1])
                if since == every and len(found.rows) == MOST_ROWS:
                    found.rows, every = joined(found.rows), 2 * every
                if since == every:
                    found.n_done += since
                    found.rows.append((now, found.n_done, stale / since))
                    since = stale = 0
            else:
                found.n_dropped += 1
        elif name == "left":
            found.left_seconds[role - n_servers] = now
        elif name == "quota":
            found.quotas.add((now, *value))
        if note is not None:
            note(now, role, name, value)

    moves = cost.bytes_per_second > 0
    network = _Network(plan, n_servers, alike) if moves or ((cost.apply or cost.message) and not plan.colocated) else None
    worker = roles[n_servers]
    n_taken = 1 if isinstance(worker, Worker) and worker.rides else 2  # of a worker by a server, each clock: what it pushes, and what it asks apart
    result = virtual.run(roles, _compute(plan, n_servers, n_taken), cost.latency, record=record, arrival=network, reports=False)
    found.seconds, found.done_by = max(found.left_seconds), list(done_by)
    if since:
        found.n_done += since
        found.rows.append((found.seconds, found.n_done, stale / since))
    granting = roles[-1].n_messages if isinstance(roles[-1], Counting) else 0  # there is one coordinator, whatever the servers
    found.n_messages, found.nbytes = (result.n_messages - granting) * alike + granting, result.nbytes * alike if moves else 0
    for told in {worker.tally for worker in roles[n_servers : n_servers + n] if isinstance(worker, Worker)}:
        for staleness, times in told.staleness.items():
            found.staleness[staleness] = found.staleness.get(staleness, 0) + times
    found.busy_seconds = result.compute_seconds[n_servers : n_servers + n]
    return found


def _compute(plan: Plan, n_servers: int, n_taken: int) -> Callable[[int, int, float], float]:
    """Return the seconds of a worker's step: its draw, stretched where it is slow, what it takes, and what the server beside it does, `n_taken` messages of each worker."""
    cost, slowdown = plan.cost, plan.slowdown
    if (measured := plan.measured) is not None:
        return lambda role, step, now: measured[role - n_servers][step % len(measured[role - n_servers])] if step >= 0 else 0.0
    # Of each server an answer, and of a server beside it an update and what all workers tell that server.
    beside = plan.n_shards * cost.message + (cost.apply + n_taken * plan.n_workers * cost.message) * plan.colocated
    # What uses the final values, in a step numbered -1, takes no time.
    if len(cost.compute) == 1 and not (cost.jitter or cost.slowness) and slowdown is None:
        constant = cost.mean_seconds + beside
        return lambda role, step, now: constant if step >= 0 else 0.0
    drawn = cost.seconds(plan.seed, plan.n_workers).of
    if slowdown is None:
        return lambda role, step, now: drawn(role - n_servers, step) + beside if step >= 0 else 0.0
    return lambda role, step, now: drawn(role - n_servers, step) * (1 + slowdown.extra(role - n_servers, step)) + beside if step >= 0 else 0.0


class _Network:
    """When a message arrives: it travels `latency`, waits for the links of both ends and the core of the shard, and takes its time there.

    Every rank has one link, as fast each way. Of shards that are alike one is simulated, but a worker's link carries what goes to and comes from all of
    them; where a server lies beside each worker, the link of its rank carries that worker's payload, too, and what the two send each other takes no link.
    """

    def __init__(self, plan: Plan, n_servers: int, alike: int) -> None:
        cost = plan.cost
        self.n_servers, self.latency, self.rate = n_servers, cost.latency, cost.bytes_per_second
        self.n_alike, self.shared = alike - (plan.colocated and alike > 1), plan.colocated
        self.message, self.apply = (0.0, 0.0) if plan.colocated else (cost.message, cost.apply / plan.n_shards)
        # Until when the core and the link in, and the link out, of each shard are taken; and the links of each worker.
        self.coming, self.going = [0.0] * n_servers, [0.0] * n_servers
        self.leaving, self.reaching = [0.0] * plan.n_workers, [0.0] * plan.n_workers

    def __call__(self, now: float, source: int, target: int, message: Message) -> float:
        data = message.data
        beside = self.shared and abs(target - source) == self.n_servers
        seconds = data.array.nbytes / self.rate if data is not None and self.rate and not beside else 0.0
        if target < self.n_servers:
            sent = now
            if seconds:
                sent = self.leaving[source - self.n_servers] = max(self.leaving[source - self.n_servers], now) + self.n_alike * seconds
                self.going[target] += seconds * self.shared
            served = self.message + (self.apply if message.kind == PUSH else 0.0)
            self.coming[target] = taken = max(self.coming[target], now + self.latency) + seconds + served
            return max(taken, sent + self.latency + served)  # the shard takes from others while the rest of this one's payload leaves
        if message.kind == ROWS and self.rate and not beside:
            worker = target - self.n_servers
            self.going[source] = gone = max(self.going[source], now) + seconds
            self.coming[source] += seconds * self.shared
            self.reaching[worker] = reached = max(self.reaching[worker], now) + self.n_alike * seconds
            return max(gone, reached) + self.latency
        return now + self.latency
