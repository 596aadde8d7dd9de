"""Train data-parallel through a parameter server: shards of the parameters on servers, shares of each global batch on workers.

    global batch of clock c    | worker 0 | worker 1 | worker 2 |         each pushes the gradient of its share / size of the batch
    parameters                 |  shard 0 (server 0) |  shard 1 (server 1)  |   each applies what is pushed, by the policy's rule

Inside one host the parameters lie in one shared window: a server changes its shard there and an answer is only the permission to read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mpidml.core.buffers import Buffers
from mpidml.core.job import Job
from mpidml.core.partition import merge_parts, shards
from mpidml.core.placement import Placement, place
from mpidml.core.position import Position
from mpidml.core.role import Array, Role
from mpidml.core.slowdown import Slowdown
from mpidml.core.target import parse_target
from mpidml.data.sampler import Sampler
from mpidml.nn.network import Network
from mpidml.nn.sparse_first import SparseFirst
from mpidml.optim.base import Chain, make_chain
from mpidml.ps.client import Client
from mpidml.ps.coded import CodedShard
from mpidml.ps.codes import Codes, check_codes
from mpidml.ps.coordinator import Coordinator
from mpidml.ps.managed import make_client
from mpidml.ps.rules import check_early, check_rules, check_workers
from mpidml.ps.shard import Shard
from mpidml.ps.store import Store
from mpidml.ps.table import TableSpec, n_versions
from mpidml.ps.worker import Worker
from mpidml.rates.base import make_rates
from mpidml.runtime.bell import Bell
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import Dataset
from mpidml.runtime.driver import LOOK_SECONDS, Driver
from mpidml.runtime.group_there import GroupThere
from mpidml.runtime.group_training import GroupTraining, LeaderDriver, Member
from mpidml.runtime.groups import check_groups, make_group
from mpidml.runtime.memory import make_window
from mpidml.runtime.occupancy import Occupancy
from mpidml.runtime.served import Served
from mpidml.runtime.sparse_training import SparseThere, SparseTraining
from mpidml.runtime.training import Training
from mpidml.runtime.training_there import TrainingThere, stays
from mpidml.sync.base import SyncPolicy, make_policy

PART_NBYTES = 256 * 1024
SHARD_ALIGN = 16
GRADIENTS_AHEAD = 8
TARGET_LOOK_SECONDS = 0.02  # a run that has met its target goes on for as long as this at most
START = Position()


class ParameterServer(Served):
    """Place roles on ranks and train a network on data (Collective on comm).

    `prepare` makes what this rank's `roles` need and the `driver` that runs them; where the run has paused, they are made anew, with what the policy
    has `learnt` of the workers. `views[version % copies]`: the shared parameters where workers read in place.
    """

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        self.job, self.comm = job, comm
        self.policy: SyncPolicy = make_policy(job.policy())
        check_rules(job, self.policy)
        self.placement: Placement = place(comm.size, job.servers, job.group)
        self.n_workers = len(self.placement.worker_ranks)
        groups = self.placement.groups
        self.n_computing = sum(map(len, groups)) or self.n_workers
        check_workers(job, self.policy, self.n_workers, self.n_computing)
        check_groups(job, comm, groups)
        self.coordinated = bool(self.policy.gate_at or job.assign == "dynamic" or job.target or job.seconds or job.checkpoint_every or job.patience)
        self.coordinator: Coordinator | None = None
        self.repeat = job.deterministic
        # Rows are of a clock where nobody computes one before all have ended the last, and where a run that comes again shall have the same ones.
        self.in_step = (self.policy.bound == 0 and not self.policy.gate_at) or self.repeat
        self.by_clock = self.repeat or self.policy.commit == "clock"
        self.chain = chain = make_chain(job.optimizer, job.rate)
        on_servers = job.optimize == "servers"
        chain.each_sees(1.0 / self.n_workers)
        self.before, after = chain.split() if on_servers else (None, chain)
        if on_servers and self.by_clock:
            after.each_sees(1.0)  # the servers sum up a clock's gradients first
        self.server_chain: Chain | None = after if on_servers else None
        self.worker_chain: Chain | None = None if on_servers else after
        self.endless = job.endless
        self.rates = make_rates(job.lr_policy, job.seconds if job.endless else 0.0)
        self.slowdown = Slowdown(job.slowdown, self.n_workers, job.seed) if job.slowdown else None
        self.early = self._early()
        self.in_place = comm.one_host and job.transport == "auto" and job.reads == "fresh" and on_servers
        check_codes(job, self.by_clock, self.in_place)
        self.copies = n_versions(self.in_place, self.by_clock, self.policy.bound, self.repeat)
        self.stores: dict[int, Store] = {}
        self.tasks: dict[int, Training] = {}
        self.workers: dict[int, Worker] = {}
        self.learnt: dict[str, list[float]] = {}
        self.load: Occupancy | None = None  # of this machine, where the run is on it

    def _early(self) -> bool:
        """Whether gradients are pushed layer by layer: by default where reads wait for them and a server has a core of its own to apply them on."""
        by_parts = self.before is None and self.worker_chain is None and self.job.group == 1  # what a push is made of is final part by part
        possible = self.comm.size > 1 and by_parts and not self.policy.gate_at and not self.job.budget
        check_early(self.job, possible)
        apart = not set(self.placement.server_ranks) & set(self.placement.worker_ranks)
        return possible and (self.job.early_push == "on" or (self.job.early_push == "auto" and apart and self.policy.bound == 0))

    def prepare(
        self,
        net: Network,
        data: Dataset,
        record: Callable[[int, float, str, tuple[float, ...]], None],
        look: Callable[[float], None],
        trace: Any,
        over: Callable[[float], bool] | None = None,
    ) -> None:
        """Make what this rank's roles need and the driver that runs them (Collective on comm); `over`: see `make`."""
        self.make(net, data, trace, over)
        self.load = Occupancy() if self.policy.watches_seconds else None
        often = TARGET_LOOK_SECONDS if self.target is not None else LOOK_SECONDS
        if self.member is not None:
            self.driver: Any = Member(self.member, look, often)
            return
        driver = Driver if self.group is None else partial(LeaderDriver, self.group)
        self.driver = driver(self.comm, {}, self.rank_of, self.window, self.bell, record, look, self.job.wait_limit, trace=trace, look_seconds=often)

    def make(self, net: Network, data: Dataset, trace: Any, over: Callable[[float], bool] | None) -> None:
        """Cut the parameters, allocate buffers, fill the first version (Collective on comm).

        `over(now)` says on rank 0 whether the time is up; None for a run without such a limit.
        """
        comm, job = self.comm, self.job
        self.net, self.data, self.trace, self.over = net, data, trace, over
        self.chain.see(net.params)
        self.first = SparseFirst(net) if data.is_sparse else None
        flat = net if self.first is None else self.first.rest  # what lies in the first table
        if self.first is not None:  # rows are asked for by the features that occur, and travel
            self.early = self.in_place = False
            self.copies = n_versions(False, self.by_clock, self.policy.bound, self.repeat)
        blocks = self.n_computing if job.assign == "static" else 0  # a group's share of a batch is as large as its number of ranks
        self.sampler = Sampler(len(data.x), job.batch, self.n_workers, job.seed, blocks)
        self.n_clocks = job.n_clocks(self.sampler.clocks_per_epoch)
        if self.rates is not None:
            self.rates.span(self.n_clocks)
        self.target = parse_target(job.target, job.looks_at)
        servers = self.placement.server_ranks
        own = [worker for worker, rank in enumerate(self.placement.worker_ranks) if comm.hosts(rank)]
        self.codes = Codes(job, net, own, self.n_workers, self.policy, self.by_clock, net.device.kernels) if job.compress else None
        starts = self.codes.starts if self.codes else ()
        net.split = self.early and not starts
        parts = merge_parts(net.parts(), PART_NBYTES // net.dtype.itemsize) if self.early else ()
        cut = shards(flat.n_params, len(servers), parts, SHARD_ALIGN, starts)
        self.spec = TableSpec("weights", flat.n_params, 1, net.dtype, cut, 0, self.server_chain, job.reads, self.in_place)
        self.specs, n_values = [self.spec], flat.n_params
        if self.first is not None:
            n_rows, width = self.first.n_rows, self.first.width
            self.specs.append(TableSpec("rows", n_rows, width, net.dtype, shards(n_rows, len(servers)), len(cut), self.server_chain))
            n_values += min(n_rows, data.x.n_stored * job.batch // (len(data.x) * self.n_workers) + 1) * width  # of a share, about
        self.shards = [(spec, shard) for spec in self.specs for shard in spec.shards]
        self.rank_of = [servers[shard.server] for _, shard in self.shards] + list(self.placement.worker_ranks)
        self.worker_roles = range(len(self.shards), len(self.rank_of))
        self.rank_of += [0] * self.coordinated
        nbytes = n_values * net.dtype.itemsize
        ahead = self.policy.bound if self.policy.bound is not None else GRADIENTS_AHEAD
        self.n_gradients = 2 + (ahead if self.repeat else min(ahead, GRADIENTS_AHEAD))
        self.window = make_window(comm, self.n_gradients + 2 * self.n_workers * (not self.in_place), nbytes) if job.transport == "auto" else None
        self.buffers: Buffers = self.window or Buffers()
        self.bell = Bell(comm.host) if comm.one_host and self.window is not None else None
        self.group = make_group(self) if self.placement.groups else None
        n_all = self.copies * net.n_params
        self.table: Array | None = comm.shared(n_all, net.dtype).reshape(self.copies, -1) if self.in_place else None
        self.views = list(self.table) if self.table is not None else []
        self.shown: Array | None = comm.shared(len(cut), np.int64) if self.in_place and not self.by_clock else None
        of_group = GroupThere if stays(self) else GroupTraining
        initial = net.init(job.seed)
        for number, rank in enumerate(self.rank_of):
            if comm.hosts(rank) and number < self.worker_roles.start:
                (spec, shard), (lo, hi) = self.shards[number], self.extent(number)
                versions = [self.views[v][lo:hi] if self.views else np.empty(hi - lo, net.dtype) for v in range(self.copies)]
                versions[0][:] = initial[lo:hi]
                make: Callable[..., Store] = self.codes.store if self.codes else Store
                self.stores[number] = make(versions, shard.lo, spec.width, net.backend, self.server_chain, net.device.kernels)
            elif comm.hosts(rank) and number < self.worker_roles.stop:
                alone, sparse = (TrainingThere if stays(self) else Training), (SparseTraining if net.device.kernels is None else SparseThere)
                program = sparse if self.first is not None else of_group if self.group is not None else alone
                self.tasks[number] = program(self, number - self.worker_roles.start)
        self.member: GroupTraining | None = None
        if self.group is not None and not self.group.leads:
            self.n_gradients = 0  # a member has one, that its group sums
            self.member = of_group(self, self.group.worker)

    def extent(self, number: int) -> tuple[int, int]:
        """Return which elements [lo, hi) of the network's flat parameters a shard's store holds."""
        spec, (lo, hi, _) = self.shards[number]
        at = 0 if self.first is None or spec is not self.spec else self.first.n_weight
        return at + lo * spec.width, at + hi * spec.width

    def roles(self, position: Position = START, pause_at: int = 0) -> dict[int, Role]:
        """Return this rank's roles by number, to go on from `position` (Collective on comm), and to pause when `pause_at` turns are done (0: never)."""
        roles: dict[int, Role] = {}
        turns, shown = position.turns or (0,) * self.n_workers, self.shown
        for number, store in self.stores.items():
            if self.by_clock:
                store.begin(position.clock)
            if shown is not None:
                shown[number] = position.clock
            roles[number] = shard = (CodedShard if self.codes else Shard)(
                self.shards[number][0].name,
                self.worker_roles,
                self.policy,
                store,
                self.buffers.allocate,
                repeat=self.repeat,
                tuned=self.job.tune,
                in_place=self.in_place,
                eager=self.job.reads == "eager",
                shown=None if shown is None else shown[number : number + 1],
                rate=self.rates,
                clock=position.clock,
            )
            shard.clocks.know(self.learnt)
        for number, task in self.tasks.items():
            before = self.workers.get(number)
            client = self._client(task.worker, None if before is None else before.client)
            client.clock = position.clock
            roles[number] = self.workers[number] = worker = Worker(
                client,
                task,
                self.n_clocks,
                self.trace is not None,
                index=task.worker,
                n_workers=self.n_workers,
                coordinator=self.worker_roles.stop if self.coordinated else -1,
                load=self.load,
                seen=None if shown is None else lambda: int(shown.min()),
                tally=None if before is None else before.tally,
            )
            worker.step = turns[task.worker]
            worker.early &= self.in_place or self.comm.size > 1  # where nobody answers meanwhile, a copy read early would only be stale
        if self.coordinated and self.comm.hosts(0):
            dynamic = self.job.assign == "dynamic"
            gate = self.policy.gate(self.n_workers, not dynamic) if self.policy.gate_at else None
            if gate is not None:
                gate.know(self.learnt)
            level = gate is None and self.policy.bound is not None
            where: dict[str, Any] = {"given": turns, "clock": position.clock, "pause_at": pause_at, "by_clock": self.policy.gate_at == "push"}
            self.coordinator = Coordinator(self.worker_roles, self.n_clocks, dynamic, gate, level, self.over, **where)
            roles[self.worker_roles.stop] = self.coordinator
        self.comm.Barrier()  # the first versions are in place before anyone may read them
        return roles

    def _client(self, worker: int, before: Client | None) -> Client:
        job = self.job
        if self.codes:
            return self.codes.client(self.specs, worker, self.buffers.allocate)
        return make_client(self.specs, self.policy, self.by_clock, budget=job.budget, order=job.order, seed=job.seed + worker, before=before)
