"""Build the same small jobs for both interpreters: roles on virtual clocks, and roles on MPI. Readers note all they see; checkers judge later.

The oracle table has one row for each (worker, clock); worker w adds 1 to row w * n_clocks + c at clock c and nowhere else, so what a
read shows tells exactly which updates it contains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from mpidml_kernels import backend

from mpidml.core.buffers import Buffers
from mpidml.core.partition import shards
from mpidml.core.position import Position
from mpidml.core.role import Lease, Role
from mpidml.optim.base import make_chain
from mpidml.ps.client import Client
from mpidml.ps.coordinator import Coordinator
from mpidml.ps.managed import make_client
from mpidml.ps.routing import Routing
from mpidml.ps.shard import Shard
from mpidml.ps.store import Store
from mpidml.ps.table import TableSpec, n_versions
from mpidml.ps.task import Push, Read, Turn
from mpidml.ps.worker import Worker
from mpidml.sync.base import Gate, SyncPolicy


@dataclass
class Seen:
    """One read: who, its step, the clock of the tables, the clocks that it is said to show, the row that is written after it, and the values."""

    worker: int
    step: int
    clock: int
    version: int
    row: int
    values: np.ndarray[Any, Any]


@dataclass
class OracleTask:
    """Add 1 to the own row of each clock and note every read. `sparse`: push and read listed rows only."""

    worker: int
    n_workers: int
    n_clocks: int
    sparse: bool = False
    width: int = 1
    seen: list[Seen] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    on_compute: Callable[[int, int], None] | None = None
    final: Any = None

    def __post_init__(self) -> None:
        self.n_rows = self.n_workers * self.n_clocks
        self.out = [np.zeros((self.n_rows, self.width)) for _ in range(2)]
        self.rows = np.random.default_rng(self.worker).permutation(self.n_rows).astype(np.int64) if self.sparse else None

    def reads(self, step: int) -> Sequence[Read]:
        return [Read(0, self.out[step % 2], self.rows)]

    def last_reads(self, step: int) -> Sequence[Read]:
        return self.reads(step)

    def values(self, step: int) -> np.ndarray[Any, Any]:
        got = self.out[step % 2][:, 0]
        if self.rows is None:
            return got.copy()
        back = np.empty_like(got)
        back[self.rows] = got
        return back

    def compute(self, turn: Turn, report: Any) -> tuple[Sequence[Push], tuple[float, ...]]:
        if self.on_compute is not None:
            self.on_compute(self.worker, turn.step)
        if report is not None:
            report(0, 0)
        self.turns.append(turn)
        row = turn.block % self.n_workers * self.n_clocks + turn.block // self.n_workers
        self.seen.append(Seen(self.worker, turn.step, turn.clock, turn.versions[0], row, self.values(turn.step)))
        if self.sparse:
            return [Push(0, Lease(np.ones(self.width)), np.array([row], np.int64))], (float(turn.step),)
        delta = np.zeros((self.n_rows, self.width))
        delta[row] = 1
        return [Push(0, Lease(delta.ravel()))], (float(turn.step),)

    def early(self) -> None:
        return None

    def finish(self, turn: Turn, report: Any) -> Any:
        self.final = self.values(turn.step)
        return self.final


@dataclass
class Scenario:
    """Roles of one job: shards first, then workers; `rank_of` spreads them over `n_ranks` (server k on rank k % n_ranks, workers likewise)."""

    policy: SyncPolicy
    n_workers: int = 3
    n_servers: int = 2
    n_clocks: int = 12
    repeat: bool = False
    reads: str = "fresh"
    sparse: bool = False
    width: int = 1
    on_compute: Callable[[int, int], None] | None = None
    shard_class: type[Shard] = Shard
    client_class: type[Client] = Client
    dynamic: bool = False
    coordinated: bool = False
    gate: Gate | None = None
    load: Callable[[int, float], float] | None = None
    cache_rows: int = 0
    budget: float = 0.0
    order: str = "fifo"
    task_class: type[OracleTask] = OracleTask
    position: Position = field(default_factory=Position)
    pause_at: int = 0

    def __post_init__(self) -> None:
        n_rows = self.n_workers * self.n_clocks
        self.cut = shards(n_rows, self.n_servers)
        self.by_clock = self.repeat or self.policy.commit == "clock"
        self.spec = TableSpec("oracle", n_rows, self.width, np.dtype(np.float64), self.cut, 0, None, self.reads)
        self.worker_roles = range(len(self.cut), len(self.cut) + self.n_workers)
        self.coordinated = self.coordinated or self.dynamic or bool(self.policy.gate_at)
        self.n_roles = self.worker_roles.stop + self.coordinated
        self.tasks: dict[int, OracleTask] = {}
        self.stores: dict[int, Store] = {}
        self.clients: dict[int, Client] = {}
        self.final: Any = None
        self.arithmetic = backend("numpy")

    def rank_of(self, n_ranks: int) -> list[int]:
        return [s.server % n_ranks for s in self.cut] + [w % n_ranks for w in range(self.n_workers)] + [0] * self.coordinated

    def role(self, number: int, buffers: Buffers) -> Role:
        """Make role `number`; call it only on the rank that hosts it."""
        if number < len(self.cut):
            shard = self.cut[number]
            copies = n_versions(False, self.by_clock, self.policy.bound, self.repeat)
            if number not in self.stores:
                self.stores[number] = Store([np.zeros((shard.hi - shard.lo) * self.width) for _ in range(copies)], shard.lo, self.width, self.arithmetic)
            store, clock = self.stores[number], self.position.clock
            if self.by_clock:
                store.begin(clock)
            eager = self.reads == "eager"
            return self.shard_class("oracle", self.worker_roles, self.policy, store, buffers.allocate, repeat=self.repeat, eager=eager, clock=clock)
        worker = number - len(self.cut)
        if worker == self.n_workers:
            gate = self.gate or (self.policy.gate(self.n_workers, not self.dynamic) if self.policy.gate_at else None)
            level = gate is None and self.policy.bound is not None
            given = {"given": self.position.turns, "clock": self.position.clock, "pause_at": self.pause_at, "by_clock": self.policy.gate_at == "push"}
            self.coordinator = Coordinator(self.worker_roles, self.n_clocks, self.dynamic, gate, level, **given)
            return self.coordinator
        if worker not in self.tasks:
            self.tasks[worker] = self.task_class(worker, self.n_workers, self.n_clocks, self.sparse, self.width, on_compute=self.on_compute)
        client = self.clients[worker] = self.client(self.clients.get(worker))
        client.clock = self.position.clock
        coordinator = self.n_roles - 1 if self.coordinated else -1
        load = None if self.load is None else partial(self.load, worker)
        role = Worker(
            client,
            self.tasks[worker],
            self.n_clocks,
            traced=True,
            index=worker,
            n_workers=self.n_workers,
            coordinator=coordinator,
            load=load,
        )
        role.step = self.position.turns[worker] if self.position.turns else 0
        return role

    def client(self, before: Client | None = None) -> Client:
        """Make a worker's client, or the one that a test gives in its place; `before`: what it had until a pause."""
        given = {"cache_rows": self.cache_rows, "budget": self.budget, "order": self.order}
        if self.client_class is Client:
            return make_client([self.spec], self.policy, self.by_clock, **given, before=before)
        options = {name: value for name, value in given.items() if value and (self.budget or name != "order")}
        return self.client_class([self.spec], self.policy, self.by_clock, **options)

    def roles(self) -> list[Role]:
        buffers = Buffers()
        return [self.role(i, buffers) for i in range(self.n_roles)]

    def seen(self) -> list[Seen]:
        return [s for task in self.tasks.values() for s in task.seen]


def run_on_mpi(scenario: Scenario, comm: Any, window: bool = True, **options: Any) -> list[Seen]:
    """Run the scenario's roles on the ranks of `comm` and return what all workers saw, on every rank (Collective on comm)."""
    from mpidml.runtime.bell import Bell
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.driver import Driver
    from mpidml.runtime.memory import WindowBuffers

    counted = CountedComm(comm)
    buffers = WindowBuffers(counted.host, 1 << 20) if window and comm.size > 1 else None
    bell = Bell(counted.host) if buffers is not None else None
    rank_of = scenario.rank_of(comm.size)
    roles = {i: scenario.role(i, buffers or Buffers()) for i, rank in enumerate(rank_of) if rank == comm.rank}
    driver = Driver(counted, roles, rank_of, buffers, bell, wait_limit_seconds=20.0, by_window=window, **options)
    driver.run()
    everything = counted.allgather([tuple(vars(s).values()) for s in scenario.seen()])
    finals = counted.allgather([t.final for t in scenario.tasks.values()])
    counted.Barrier()
    if buffers is not None:
        buffers.free()
    counted.free()
    seen = [Seen(*s) for rank in everything for s in rank]
    scenario.final = next(final for rank in finals for final in rank)
    assert all(sums_up(scenario, final, seen) for rank in finals for final in rank), "the final values are not the sum of all updates"
    return seen


def sums_up(scenario: Scenario, final: np.ndarray[Any, Any], seen: Sequence[Seen]) -> bool:
    """Tell whether the final values hold every update once; under a quorum as many of each clock as it needs (the last may lack some), the same for all."""
    if scenario.policy.gate_at != "push":
        return bool((final == 1).all())
    needed, by_clock = scenario.policy.needed(scenario.n_workers), Counter(s.clock for s in seen if final[s.row])
    return set(final) <= {0, 1} and all(by_clock[c] == needed for c in range(max(by_clock))) and by_clock[max(by_clock)] <= needed


def misses(scenario: Scenario, seen: Sequence[Seen], bound: int | None) -> list[str]:
    """Judge reads by their values alone: all updates of clocks < c - bound, all own ones, nothing twice, nothing taken back.

    An update is in the final values or it was dropped, and then no read may show it. Where a gate stands, a clock shows all that went before.
    """
    found = []
    before: dict[int, np.ndarray[Any, Any]] = {}
    written: dict[int, list[int]] = {}
    counts = np.asarray(next((t.final for t in scenario.tasks.values()), scenario.final)) != 0
    clock_of = np.full(counts.size, 1 << 30)
    for s in seen:
        clock_of[s.row] = s.clock
    if scenario.policy.gate_at and bound is not None:
        bound = 0
    for s in sorted(seen, key=lambda s: (s.worker, s.step)):
        if not np.isin(s.values, (0.0, 1.0)).all():
            found.append(f"worker {s.worker} step {s.step}: an update counts {s.values.max()} times")
        if bound is not None and not s.values[counts & (clock_of < s.clock - bound)].all():
            found.append(f"worker {s.worker} step {s.step}: an update older than {bound} clocks is missing")
        own = written.setdefault(s.worker, [])
        if not s.values[[row for row in own if counts[row]]].all():
            found.append(f"worker {s.worker} step {s.step}: misses an own update")
        if s.values[~counts].any():
            found.append(f"worker {s.worker} step {s.step}: shows an update that was dropped")
        if s.worker in before and (s.values < before[s.worker]).any():
            found.append(f"worker {s.worker} step {s.step}: an update was taken back")
        before[s.worker] = s.values
        own.append(s.row)
    return found


def lag(scenario: Scenario, s: Seen) -> int:
    """Return how many clocks a read is behind by its values: its clock minus the clocks of which it shows everything."""
    grid = s.values.reshape(scenario.n_workers, scenario.n_clocks)
    full = grid.all(axis=0)
    return s.clock - (int(np.argmin(full)) if not full.all() else scenario.n_clocks)


class Still:
    """A worker's program that reads, computes and writes nothing but sizes; the scenario's clock says how long it takes."""

    result = ((Push(0, Lease(np.broadcast_to(np.zeros(1), (8,)))),), ())
    read = (Read(0, None),)

    def reads(self, step: int) -> Sequence[Read]:
        return self.read

    last_reads = reads

    def compute(self, turn: Turn, report: Any) -> tuple[Sequence[Push], tuple[float, ...]]:
        return self.result

    def early(self) -> None:
        return None

    def finish(self, turn: Turn, report: Any) -> None:
        return None


def still_roles(policy: SyncPolicy, n_workers: int, n_clocks: int, shard_class: type[Shard] = Shard) -> list[Role]:
    """Return one server (role 0) and workers that pass sizes only, for questions of time alone."""
    spec = TableSpec("still", 8, 1, np.dtype(np.float64), shards(8, 1), 0, make_chain("sgd", 1.0), in_place=True)
    server = shard_class("still", range(1, n_workers + 1), policy, None, in_place=True)
    routing = Routing([spec])
    return [server, *(Worker(Client(routing, policy, policy.commit == "clock"), Still(), n_clocks) for _ in range(n_workers))]
