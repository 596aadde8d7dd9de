"""Train data-parallel without servers: every rank computes the gradient of its share of a batch, the ranks sum them up, each changes what it owns.

    gradient of rank r   | bucket 2 | bucket 1 | bucket 0 |      slices of one buffer, final from the end to the start
    sum over ranks       |  0 .. P  |  0 .. P  |  0 .. P  |      of each bucket every rank owns a part: its sum, its optimizer state, its weights

So no rank holds more than 1 / P of the optimizer's memory. Where a link of the optimizer needs the whole gradient, or the collective leaves the whole sum
on every rank (recursive_doubling, mpi, hierarchical), each rank changes all weights by itself, to the same bits. Sources: Li et al. 2020 (buckets, overlap),
Rajbhandari et al. 2020 (ownership).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from mpidml.collectives.base import FOLDER, Collective, Done, Halves
from mpidml.core import plugins
from mpidml.core.buffers import Buffer
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.partition import Shard, merge_parts
from mpidml.core.placement import Placement
from mpidml.core.position import Position
from mpidml.core.role import Array, Lease
from mpidml.core.slowdown import Slowdown
from mpidml.core.target import parse_target
from mpidml.data.sampler import Sampler
from mpidml.nn.network import Network
from mpidml.optim.base import make_chain
from mpidml.ps.store import Store
from mpidml.rates.base import make_rates
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import Dataset
from mpidml.runtime.stepping import Bucket, Part, Stepper, Votes
from mpidml.runtime.training import Training
from mpidml.sync.base import make_policy

LOOK_SECONDS = 0.25
START = Position()
IDLE = ("sync", "staleness", "reads", "assign", "servers", "optimize", "early_push", "budget", "order", "transport")
"""Flags of the parameter server, which decide nothing here."""


class DataParallel:
    """Cut the gradient into buckets and train a network on data (Collective on comm); `prepare` makes the `driver` that steps."""

    in_step, in_place, early, repeat, copies, n_gradients = True, True, True, True, 1, 0
    worker_chain = before = load = table = None

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        self.job, self.comm = job, comm
        job.refuse(IDLE, "--strategy data_parallel, which has no servers")
        job.check_repeats({"--target": job.target and not job.patience, "--seconds": job.seconds})
        if job.bucket < 1:
            raise UserError(f"--bucket {job.bucket}: is no number of bytes; give one from 1 up, as 1000000")
        self.policy = make_policy("bsp")
        self.n_workers = comm.size
        job.check_workers(comm.size)
        everyone = tuple(range(comm.size))
        self.placement = Placement(comm.size, (), everyone)
        self.links, self.chain = make_chain(job.optimizer, job.lr).split()
        self.endless = job.endless
        self.rates = make_rates(job.lr_policy, job.seconds if job.endless else 0.0)
        self.slowdown = Slowdown(job.slowdown, self.n_workers, job.seed) if job.slowdown else None
        self.collective: Collective = plugins.make(FOLDER, job.collective)
        if not self.collective.exact:
            raise UserError(f"--collective {job.collective}: does not sum over all ranks; use one of ring, rabenseifner, tree, shared, hierarchical, mpi, auto")
        self.coordinated = bool(job.target or job.seconds or job.checkpoint_every or job.patience)

    def prepare(
        self,
        net: Network,
        data: Dataset,
        record: Callable[[int, float, str, tuple[float, ...]], None],
        look: Callable[[float], None],
        trace: Any,
        over: Callable[[float], bool] | None = None,
    ) -> None:
        """Cut, allocate, and fill the first weights (Collective on comm); `over(now)` says on rank 0 whether the time is up."""
        comm, job = self.comm, self.job
        self.net, self.data, self.trace, self.over = net, data, trace, over
        self.sampler = Sampler(len(data.x), job.batch, self.n_workers, job.seed)
        self.n_clocks = job.n_clocks(self.sampler.clocks_per_epoch)
        if self.rates is not None:
            self.rates.span(self.n_clocks)
        self.target = parse_target(job.target, job.looks_at)
        self.collective.open(comm)
        net.split = comm.size > 1
        cuts = merge_parts(net.parts(), max(1, job.bucket // net.dtype.itemsize))
        collective = self.collective.pick(min(job.bucket, net.n_params * net.dtype.itemsize))
        self.picked = type(collective).__name__.lower() if job.collective == "auto" else job.collective
        self.gradient = collective.allocate(net.n_params, net.dtype)
        self.weights = collective.weights(net.n_params, net.dtype) if self.links is None else np.zeros(net.n_params, net.dtype)
        halves = [self._halves(collective, lo, hi) for lo, hi in cuts]
        self.shares = any(half.shares for half in halves)
        initial = net.init(job.seed)
        self.stores: dict[int, Store] = {}
        buckets: list[Bucket] = []
        shards: list[Shard] = []
        self.rank_of: list[int] = []
        for (lo, hi), half in zip(cuts, halves, strict=True):
            own = (lo + half.lo, lo + half.hi)
            self.weights[lo:hi] = initial[lo:hi]
            store = Store([self.weights[slice(*own)]], own[0], 1, net.backend, self.chain)
            buckets.append(Bucket(lo, hi, half, store))
            for rank, (first, end) in enumerate(comm.allgather(own) if half.shares else [own]):
                if first < end:
                    if rank == comm.rank or not half.shares:
                        self.stores[len(shards)] = store
                    shards.append(Shard(first, end, rank))
                    self.rank_of.append(rank)
        self.views = [self.weights]
        self.first_worker_role = len(shards)
        self.worker_role = len(shards) + comm.rank
        self.rank_of += list(range(comm.size))
        self.spec = SimpleNamespace(shards=shards)
        self.coordinator = Votes(self.collective, comm.rank == 0) if self.coordinated else None
        task = Training(self, comm.rank)
        memory = Buffer(self.gradient.view(np.uint8))
        task.gradients = [(memory, self.gradient, Lease(self.gradient))]
        if self.links is not None:
            task.state = self.links.init(net.n_params, net.dtype)
        self.tasks = {self.worker_role: task}
        self.part = Part()
        self.workers = {self.worker_role: self.part}
        self.driver = Stepper(self, task, buckets, self.part, record, look, LOOK_SECONDS)
        comm.Barrier()  # the weights are in place before anyone reads them

    def _halves(self, collective: Collective, lo: int, hi: int) -> Halves:
        """Prepare one bucket: in halves, or where the whole gradient is needed, as a whole sum that every rank owns."""
        gradient = self.gradient[lo:hi]
        if self.links is None:
            return collective.halves(gradient, self.weights[lo:hi])
        return Halves(collective.plan(gradient), Done(), 0, hi - lo, gradient, False)

    def roles(self, position: Position = START, pause_at: int = 0) -> dict[int, Any]:
        """Go to `position`, to step until the end, or until `pause_at` clocks are done (0: never); there are no roles."""
        self.driver.clock = self.part.step = max(position.turns, default=0)
        self.driver.until = min(self.n_clocks, pause_at or self.n_clocks)
        self.refresh()
        return {}

    def refresh(self) -> None:
        """Bring the weights that each rank owns to all others, where they were changed other than by a step (Collective on comm)."""
        for bucket in self.driver.buckets:
            bucket.halves.gather.start()
            bucket.halves.gather.wait(self.job.wait_limit)

    def position(self) -> Position:
        """Return where the run stands (Collective on comm)."""
        return Position(self.driver.clock, (self.driver.clock,) * self.n_workers)

    def final_values(self) -> Array:
        """Return the weights; all ranks have them."""
        return self.weights

    def check_alike(self) -> None:
        """Compare what every rank holds for itself, weights and where all change them the optimizer (Collective on comm). RuntimeError names who differs."""
        digest = hashlib.blake2b(self.weights.data)
        for bucket in self.driver.buckets if not self.shares else ():
            for array in bucket.store.optimizer.values():
                digest.update(array.data)
        found = self.comm.allgather(digest.hexdigest())
        if odd := [rank for rank, of in enumerate(found) if of != found[0]]:
            raise RuntimeError(f"replicas differ: after clock {self.driver.clock} rank {', '.join(map(str, odd))} has other weights or optimizer state than rank 0")

    def words(self) -> str:
        """Say how the ranks work together."""
        chosen = " (chosen by measurement)" if self.job.collective == "auto" else ""
        owner = "each owns a part of weights and optimizer" if self.shares else "each changes all weights"
        return f"{self.n_workers} worker(s); sums by {self.picked}{chosen}, buckets from {self.job.bucket / 1e6:g} MB; {owner}"

    def free(self) -> None:
        """Free requests and communicators (Collective on comm)."""
        for bucket in self.driver.buckets:
            bucket.halves.reduce.free()
            bucket.halves.gather.free()
        self.collective.free()
