"""Train data-parallel through a parameter server: shards of the parameters on servers, shares of each global batch on workers.

    global batch of clock c    | worker 0 | worker 1 | worker 2 |         each pushes the gradient of its share / size of the batch
    parameters                 |  shard 0 (server 0) |  shard 1 (server 1)  |   each applies what is pushed, by the policy's rule

Inside one host the parameters lie in one shared window: a server changes its shard there and an answer is only the permission to read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.core import rng
from mpidml.core.buffers import Buffer, Buffers
from mpidml.core.errors import UserError, WaitTimeout
from mpidml.core.job import Job
from mpidml.core.partition import merge_parts, shards
from mpidml.core.placement import Placement, place
from mpidml.core.role import Array, Lease, Role
from mpidml.core.slowdown import Slowdown
from mpidml.data.sampler import Sampler
from mpidml.nn.network import Network
from mpidml.optim.base import Chain, make_chain
from mpidml.ps.client import Client
from mpidml.ps.shard import Shard
from mpidml.ps.store import Store
from mpidml.ps.table import TableSpec, n_versions
from mpidml.ps.worker import Push, Read, Worker
from mpidml.runtime.bell import Bell
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import Dataset
from mpidml.runtime.driver import Driver
from mpidml.runtime.memory import WindowBuffers
from mpidml.sync.base import SyncPolicy, make_policy

PART_NBYTES = 256 * 1024
SHARD_ALIGN = 16
GRADIENTS_AHEAD = 8
BUFFER_WAIT_SECONDS = 50e-6
NOT_SCORED = (0.0, 0.0, 0.0, 0.0)


class ParameterServer:
    """Place roles on ranks and train a network on data (Collective on comm).

    `prepare` makes this rank's roles and the `driver` that runs them. `views[version % copies]`: the shared parameters where workers read in place.
    """

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        self.job, self.comm = job, comm
        self.policy: SyncPolicy = make_policy(job.policy())
        if job.deterministic and not self.policy.repeatable:
            raise UserError(f"--deterministic: {job.sync} cannot repeat, its reads depend on timing; use bsp or ssp")
        if job.deterministic and job.reads == "eager" and (self.policy.bound or 0) > 1:
            raise UserError("--deterministic: with --reads eager a staleness above 1 depends on when rows arrive; use --reads fresh or cached")
        self.placement: Placement = place(comm.size, job.servers)
        self.n_workers = len(self.placement.worker_ranks)
        if job.batch < self.n_workers:
            raise UserError(f"--batch {job.batch}: is below the {self.n_workers} workers; give each at least one sample, or start fewer ranks")
        self.repeat = job.deterministic
        self.by_clock = self.repeat or self.policy.commit == "clock"
        chain = make_chain(job.optimizer, job.lr)
        on_servers = job.optimize == "servers"
        chain.each_sees(1.0 / self.n_workers)
        self.before, after = chain.split() if on_servers else (None, chain)
        if on_servers and self.by_clock:
            after.each_sees(1.0)  # the servers sum up a clock's gradients first
        self.server_chain: Chain | None = after if on_servers else None
        self.worker_chain: Chain | None = None if on_servers else after
        self.slowdown = Slowdown(job.slowdown, self.n_workers, job.seed) if job.slowdown else None
        self.early = self._early()
        self.in_place = comm.one_host and job.transport == "auto" and job.reads == "fresh" and on_servers
        self.copies = n_versions(self.in_place, self.by_clock, self.policy.bound, self.repeat)
        self.tasks: list[Training] = []
        self.workers: dict[int, Worker] = {}

    def _early(self) -> bool:
        """Whether gradients are pushed layer by layer: by default where reads wait for them and a server has a core of its own to apply them on."""
        possible = self.comm.size > 1 and self.before is None and self.worker_chain is None
        if self.job.early_push == "on" and not possible:
            raise UserError(
                "--early-push on: needs more than one rank, the optimizer on the servers and no link such as clip that needs the whole gradient; use auto"
            )
        apart = not set(self.placement.server_ranks) & set(self.placement.worker_ranks)
        return possible and (self.job.early_push == "on" or (self.job.early_push == "auto" and apart and self.policy.bound == 0))

    def prepare(
        self, net: Network, data: Dataset, record: Callable[[int, float, str, tuple[float, ...]], None], look: Callable[[float], None], trace: Any
    ) -> None:
        """Cut the parameters, allocate buffers and make this rank's roles and driver (Collective on comm)."""
        comm, job = self.comm, self.job
        self.net, self.data, self.trace = net, data, trace
        self.sampler = Sampler(len(data.x), job.batch, self.n_workers, job.seed)
        self.n_clocks = job.steps or job.epochs * self.sampler.clocks_per_epoch
        net.split = self.early
        parts = merge_parts(net.parts(), PART_NBYTES // net.dtype.itemsize) if self.early else ()
        cut = shards(net.n_params, len(self.placement.server_ranks), parts, SHARD_ALIGN)
        self.spec = TableSpec("weights", net.n_params, 1, net.dtype, cut, 0, self.server_chain, job.reads, self.in_place)
        self.rank_of = [self.placement.server_ranks[s.server] for s in cut] + list(self.placement.worker_ranks)
        nbytes = net.n_params * net.dtype.itemsize
        ahead = self.policy.bound if self.policy.bound is not None else GRADIENTS_AHEAD
        self.n_gradients = 2 + (ahead if self.repeat else min(ahead, GRADIENTS_AHEAD))
        self.buffers: Buffers = Buffers()
        self.window: WindowBuffers | None = None
        self.bell: Bell | None = None
        # Sizes are rounded up to powers of two; pages that are never touched take no memory.
        n_buffers = self.n_gradients + 2 * self.n_workers * (not self.in_place)
        if comm.size > 1 and job.transport == "auto" and comm.fits(comm.host.size * n_buffers * nbytes + (1 << 22)):
            self.buffers = self.window = WindowBuffers(comm.host, n_buffers * 2 * nbytes + (1 << 20))
        if comm.one_host and comm.size > 1 and self.window is not None:
            self.bell = Bell(comm.host)
        n_all = self.copies * net.n_params
        self.table: Array | None = comm.shared(n_all, net.dtype).reshape(self.copies, -1) if self.in_place else None
        self.views = list(self.table) if self.table is not None else []
        initial = net.init(job.seed)
        worker_roles = range(len(self.spec.shards), len(self.rank_of))
        roles: dict[int, Role] = {}
        for number, rank in enumerate(self.rank_of):
            if rank != comm.rank:
                continue
            if number < len(self.spec.shards):
                lo, hi, _ = self.spec.shards[number]
                versions = [self.views[v][lo:hi] if self.views else np.empty(hi - lo, net.dtype) for v in range(self.copies)]
                versions[0][:] = initial[lo:hi]
                store = Store(versions, lo, 1, net.backend, self.server_chain)
                roles[number] = Shard(
                    "weights",
                    worker_roles,
                    self.policy,
                    store,
                    self.buffers.allocate,
                    repeat=self.repeat,
                    tuned=job.tune,
                    in_place=self.in_place,
                    eager=job.reads == "eager",
                )
            else:
                task = Training(self, number - len(self.spec.shards))
                self.tasks.append(task)
                client = Client([self.spec], self.policy, self.by_clock)
                roles[number] = self.workers[number] = Worker(client, task, self.n_clocks, trace is not None)
        comm.Barrier()  # the first versions are in place before anyone may read them
        self.driver = Driver(comm, roles, self.rank_of, self.window, self.bell, record, look, job.wait_limit, trace=trace)

    def final_values(self) -> Array | None:
        """Return the parameters after the last clock on the ranks that have them."""
        if self.views:
            return self.views[self.n_clocks % self.copies]
        return self.tasks[0].flats[self.n_clocks % 2] if self.tasks else None

    def free(self) -> None:
        """Free windows and sockets (Collective on comm)."""
        if self.bell is not None:
            self.bell.close()
        if self.window is not None:
            self.window.free()


class Training:
    """One worker's part: the gradient of its share of each global batch, and at the start of an epoch its share of the test rows.

    A clock's measurements: loss sum, samples, test loss sum, correct, test rows, seconds of evaluation.
    """

    def __init__(self, strategy: ParameterServer, worker: int) -> None:
        self.strategy, self.worker = strategy, worker
        self.job, self.net, self.data, self.sampler = strategy.job, strategy.net, strategy.data, strategy.sampler
        net, n_test = strategy.net, len(strategy.data.test_x)
        nbytes = net.n_params * net.dtype.itemsize
        self.flats = [] if strategy.in_place else [np.zeros(net.n_params, net.dtype) for _ in range(2)]
        self.gradients: list[tuple[Buffer, Array, Lease]] = []
        for _ in range(strategy.n_gradients):
            buffer = strategy.buffers.allocate(nbytes, keep=True)
            g = buffer.array(net.dtype, net.n_params)
            self.gradients.append((buffer, g, buffer.lease(g)))
        self.running: Lease | None = None
        self.test = slice(n_test * worker // strategy.n_workers, n_test * (worker + 1) // strategy.n_workers)
        chain = strategy.worker_chain or strategy.before
        self.state = chain.init(net.n_params, net.dtype) if chain is not None else None
        self.slowdown = strategy.slowdown
        self.step_seconds = 0.0
        self.salt_epoch = -1
        self.salt = np.uint64(0)

    def reads(self, clock: int) -> Sequence[Read]:
        """Read all parameters, in place or into one of two buffers in turn."""
        return [Read(0, self.flats[clock % 2] if self.flats else None)]

    def compute(self, clock: int, versions: Sequence[int], report: Callable[[int, int], None] | None) -> tuple[Sequence[Push], tuple[float, ...]]:
        """Push the gradient of this worker's samples over the size of the global batch, or the change that its own optimizer makes of it."""
        strategy = self.strategy
        w = self.flats[clock % 2] if self.flats else strategy.views[versions[0] % strategy.copies]
        measured = self._score(w) if clock and not clock % self.sampler.clocks_per_epoch else NOT_SCORED
        if self.slowdown is not None:
            self._be_slow(self.step_seconds * self.slowdown.extra(self.worker, clock), report)
            started = time.perf_counter()
        rows = self.sampler.indices(clock, self.worker)
        n = rows.size
        if not n:
            self.running = None
            return (), (0.0, 0.0, *measured)
        g, lease = self._gradient(report)
        step = self.net.bind(n, w, g)
        self.data.x.take(rows, 0, step.x, "clip")
        self.data.y.take(rows, 0, step.y, "clip")
        if step.targets is not None:
            step.load_labels()
        if self.job.dropout:
            step.ids[:] = rows
            step.salt[0] = self._salt(clock)
        self.running = lease if strategy.early else None
        loss = step.run(1.0 / self.sampler.batch_size(clock), report)
        if self.slowdown is not None:
            self.step_seconds = time.perf_counter() - started
        if strategy.early:
            return (), (loss, n, *measured)
        if self.state is not None:
            self._optimize(g, w, clock, clock - versions[0])
        return (Push(0, lease),), (loss, n, *measured)

    def early(self) -> Lease | None:
        """Name the gradient that is pushed part by part."""
        return self.running

    def finish(self, clock: int, versions: Sequence[int], report: Callable[[int, int], None] | None) -> tuple[float, int, int]:
        """Score the final parameters on this worker's share of the test rows: (loss sum, correct, rows)."""
        loss, n_correct, n, _ = self._score(self.flats[clock % 2] if self.flats else self.strategy.views[versions[0] % self.strategy.copies])
        return loss, int(n_correct), int(n)

    def _gradient(self, report: Callable[[int, int], None] | None) -> tuple[Array, Lease]:
        """Return a gradient buffer that no server reads any more; wait for one if servers are that far behind."""
        limit = time.perf_counter() + self.job.wait_limit
        while True:
            for buffer, g, lease in self.gradients:
                if not buffer.busy():
                    return g, lease
            if time.perf_counter() > limit:
                raise WaitTimeout(
                    f"worker {self.worker}: no server has applied any of its last {len(self.gradients)} gradients for {self.job.wait_limit:g} s (--wait-limit)"
                )
            if report is not None:
                report(0, 0)
            time.sleep(BUFFER_WAIT_SECONDS)

    def _optimize(self, g: Array, w: Array, clock: int, staleness: int) -> None:
        """Run the worker's part of the optimizer on its gradient."""
        assert self.state is not None
        if self.strategy.before is not None:
            self.strategy.before.transform(self.net.backend, g, self.state, w, clock + 1)
        elif self.strategy.worker_chain is not None:
            chain = self.strategy.worker_chain
            tuning = self.strategy.policy.tuning(staleness if self.job.tune else 0)
            chain.delta(self.net.backend, g, self.state, w, clock + 1, tuning.rate, tuning.memory)

    def _score(self, w: Array) -> tuple[float, float, float, float]:
        started = time.perf_counter()
        x, y = self.data.test_x[self.test], self.data.test_y[self.test]
        loss, n_correct = self.net.score(w, x, y) if len(x) else (0.0, 0)
        seconds = time.perf_counter() - started
        if self.strategy.trace is not None:
            self.strategy.trace.add("evaluate", started, seconds)
        return loss, n_correct, len(x), seconds

    def _salt(self, clock: int) -> np.uint64:
        epoch = clock // self.sampler.clocks_per_epoch
        if epoch != self.salt_epoch:
            self.salt_epoch, self.salt = epoch, np.uint64(rng.key(self.job.seed, "dropout", epoch))
        return self.salt

    def _be_slow(self, seconds: float, report: Callable[[int, int], None] | None) -> None:
        """Sleep, serving the other roles of this rank meanwhile."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            time.sleep(min(left, 5e-4))
            if report is not None:
                report(0, 0)
