"""Train data-parallel without servers: every rank computes the gradient of its share of a batch, the ranks sum them up, each changes what it owns.

    gradient of rank r   | bucket 2 | bucket 1 | bucket 0 |      slices of one buffer, final from the end to the start
    sum over ranks       |  0 .. P  |  0 .. P  |  0 .. P  |      of each bucket every rank owns a part: its sum, its optimizer state, its weights

So no rank holds more than 1 / P of the optimizer's memory. Where a link of the optimizer needs the whole gradient, or the collective leaves the whole sum
on every rank (recursive_doubling, mpi, hierarchical), each rank changes all weights by itself, to the same bits. Sources: Li et al. 2020 (buckets, overlap),
Rajbhandari et al. 2020 (ownership).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpidml.collectives.base import FOLDER, Collective, Done, Halves
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.partition import Shard, merge_parts
from mpidml.core.role import Array
from mpidml.nn.network import Network
from mpidml.optim.base import make_chain
from mpidml.ps.store import Store
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import Dataset
from mpidml.runtime.serverless import Serverless
from mpidml.runtime.stepping import Bucket, Stepper


class DataParallel(Serverless):
    """Cut the gradient into buckets and train a network on data (Collective on comm); `prepare` makes the `driver` that steps."""

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        super().__init__(job, comm)
        job.refuse(("averaging", "average_every"), "--strategy data_parallel, whose ranks always hold the same weights")
        if job.bucket < 1:
            raise UserError(f"--bucket {job.bucket}: is no number of bytes; give one from 1 up, as 1000000")
        self.links, self.chain = make_chain(job.optimizer, job.rate).split()
        self.collective: Collective = plugins.make(FOLDER, job.collective)
        if not self.collective.exact:
            raise UserError(f"--collective {job.collective}: does not sum over all ranks; use one of ring, rabenseifner, tree, shared, hierarchical, mpi, auto")

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
        self.begin(net, data, trace, over)
        if self.links is not None:
            self.links.see(net.params)
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
        stores: dict[int, Store] = {}
        buckets: list[Bucket] = []
        shards: list[Shard] = []
        for (lo, hi), half in zip(cuts, halves, strict=True):
            own = (lo + half.lo, lo + half.hi)
            self.weights[lo:hi] = initial[lo:hi]
            store = Store([self.weights[slice(*own)]], own[0], 1, net.backend, self.chain)
            buckets.append(Bucket(lo, hi, half, store))
            for rank, (first, end) in enumerate(comm.allgather(own) if half.shares else [own]):
                if first < end:
                    if rank == comm.rank or not half.shares:
                        stores[len(shards)] = store
                    shards.append(Shard(first, end, rank))
        task = self.make_worker(stores, shards)
        if self.links is not None:
            task.state = self.links.init(net.n_params, net.dtype)
        self.driver = Stepper(self, task, buckets, self.part, record, look, self.look_seconds)
        comm.Barrier()  # the weights are in place before anyone reads them

    def _halves(self, collective: Collective, lo: int, hi: int) -> Halves:
        """Prepare one bucket: in halves, or where the whole gradient is needed, as a whole sum that every rank owns."""
        gradient = self.gradient[lo:hi]
        if self.links is None:
            return collective.halves(gradient, self.weights[lo:hi])
        return Halves(collective.plan(gradient), Done(), 0, hi - lo, gradient, False)

    def refresh(self) -> None:
        """Bring the weights that each rank owns to all others, where they were changed other than by a step (Collective on comm)."""
        for bucket in self.driver.buckets:
            bucket.halves.gather.start()
            bucket.halves.gather.wait(self.job.wait_limit)

    def alike(self) -> list[Array]:
        """Name what every rank holds for itself: weights, and where all change them the optimizer."""
        return [self.weights, *(array for bucket in self.driver.buckets if not self.shares for array in bucket.store.optimizer.values())]

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
