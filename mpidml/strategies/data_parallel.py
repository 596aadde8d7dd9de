"""Train data-parallel without servers: every rank computes the gradient of its share of a batch, the ranks sum them up, each changes what it owns.

    gradient of rank r   | bucket 2 | bucket 1 | bucket 0 |      slices of one buffer, final from the end to the start
    sum over ranks       |  0 .. P  |  0 .. P  |  0 .. P  |      of each bucket every rank owns a part: its sum, its optimizer state, its weights

So no rank holds more than 1 / P of the optimizer's memory, but for rank 0 after tree, and after hierarchical ranks of small hosts. Each rank changes all weights by
itself, to the same bits, where the collective leaves the whole sum on every rank (recursive_doubling, mpi), where it comes in codes, and where a link of the optimizer
measures tensors (lars, lamb; of sums in a fixed order also the gradient: clip). On a device weights, gradient and optimizer stay there where they can (`_stays`), and
only gradients travel, and their sums; each rank changes all weights then, too.
Sources: Li et al. 2020 (buckets, overlap), Rajbhandari et al. 2020 (ownership).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mpidml.collectives.base import FOLDER, Collective, Done, Halves, Sum, make_collective
from mpidml.collectives.hierarchical import Hierarchical
from mpidml.compression.base import make_codec
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.idle import BESIDES
from mpidml.core.job import NCCL, Job
from mpidml.core.partition import Shard, merge_parts
from mpidml.core.role import Array
from mpidml.core.shares import Shares
from mpidml.nn.network import Network
from mpidml.optim.base import make_chain
from mpidml.ps.store import Store
from mpidml.ps.task import Turn
from mpidml.runtime.block_training import N_LOSSES, BlockTraining
from mpidml.runtime.coded_hosts import CodedHosts
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.compressed_sum import Compressed
from mpidml.runtime.mirror import Mirror
from mpidml.runtime.nccl_sum import check_between
from mpidml.runtime.own_links import OwnLinks, needs_whole
from mpidml.runtime.progress_thread import ByHand, check_progress, make_progress
from mpidml.runtime.rank_memory import check_replica, refuse_uncounted
from mpidml.runtime.serverless import Recorder, Serverless
from mpidml.runtime.stepping import Bucket, Stepper
from mpidml.runtime.summed_there import Chosen, choose, verdict
from mpidml.runtime.training import Training

ORDERED = "ordered"


class OfMirror(Training):
    """A worker whose parameters are those of the device."""

    def _parameters(self, turn: Turn) -> Any:
        return self.strategy.there


class DataParallel(Serverless):
    """Cut the gradient into buckets and train a network on data (Collective on comm); `prepare` makes the `driver` that steps."""

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        super().__init__(job, comm)
        job.check_repeats({"--shares measured": job.shares == "measured"})
        job.refuse(BESIDES["data_parallel"], "--strategy data_parallel, whose ranks always hold the same weights")
        self.links, self.chain = make_chain(job.optimizer, job.rate).split()
        self.collective: Collective = plugins.make(FOLDER, self._collective())
        self._check_transport()
        if job.deterministic and self.collective.by_timing:
            raise UserError(f"--deterministic: --collective {job.collective} chooses by timing, and each sums in an order of its own; leave it out, or name one, as ring")
        self.ordered = self.same_bits = isinstance(self.collective, plugins.load(FOLDER, ORDERED))
        if self.ordered and job.bucket != Job.bucket:
            raise UserError(f"--bucket {job.bucket}: does nothing where gradients are computed block by block (ordered); leave it out")
        if self.ordered and job.shares != Job.shares:
            raise UserError(f"--shares {job.shares}: cannot go beside blocks of a batch that are each rank's own (ordered); leave one of them out")
        refuse_uncounted(job, self.ordered)
        if self.ordered and job.accumulate > 1:
            raise UserError(f"--accumulate {job.accumulate}: does nothing where gradients are computed block by block (ordered); leave it out, or give more blocks")
        if not self.collective.exact:
            raise UserError(f"--collective {job.collective}: does not sum over all ranks; use one of ring, rabenseifner, tree, shared, hierarchical, mpi, auto")
        self.n_blocks = self.collective.blocks if self.ordered else 0
        check_progress(job.progress_thread, comm.size, not self.ordered)

    def _collective(self) -> str:
        """Name what sums: what was asked for, else what fits how the ranks are to be heard and whether bits are to repeat."""
        job = self.job
        if job.collective != Job.collective:
            return job.collective
        if job.deterministic:  # where codes are off, all ranks share memory
            return ORDERED if not job.compress else "shared" if self.comm.one_host and job.transport == "auto" else "rabenseifner"
        return {"mpi": "auto:memory=false", NCCL: "rabenseifner"}.get(job.transport, job.collective)

    def _check_transport(self) -> None:
        """Refuse sums and codes that do not go together."""
        job, name = self.job, self.job.collective.partition(":")[0]
        if job.transport == "mpi" and (name in ("shared", "hierarchical") or getattr(self.collective, "memory", False)):
            raise UserError(f"--transport mpi: uses no shared memory, --collective {name} does; leave one of them out")
        if job.transport == NCCL:
            check_between(job.collective, self.collective, self.comm.one_host)
        if job.compress:
            self.codec = make_codec(job.compress)
            if job.collective not in (Job.collective, "hierarchical"):
                raise UserError(f"--collective {job.collective}: sums values, --compress {job.compress} sends codes to owners and back; leave one of them out")
        self.compressed: Compressed | None = None
        self.sums: Any = None  # what sums in place of `collective`: in codes, or on a device

    def build(self, record: Recorder, look: Callable[[float], None]) -> Stepper:
        """Cut, allocate, and fill the first weights; return what steps (Collective on comm)."""
        net, comm, job = self.net, self.comm, self.job
        if job.shares == "measured":
            self.sampler.shares = Shares(self.n_workers)
        if self.links is not None:
            self.links.see(net.params)
        self.collective.open(comm)
        stays = self._stays(net)
        self.progress = ByHand() if stays else make_progress(job.progress_thread, comm, not self.ordered)
        net.split = not comm.one_host and not self.ordered and not job.compress  # it costs 2%, and hides a little of what travels
        task, cuts, halves = (self._by_blocks if self.ordered else self._on_device if stays else self._by_buckets)(net)
        check_replica(self, self.picked, sum(half.hi - half.lo for half in halves))
        self.shares = any(half.shares for half in halves)
        initial = net.init(job.seed)
        self.linked = OwnLinks(self)
        stores: dict[int, Store] = {}
        buckets: list[Bucket] = []
        shards: list[Shard] = []
        for (lo, hi), half in zip(cuts, halves, strict=True):
            own = (lo + half.lo, lo + half.hi)
            self.weights[lo:hi] = initial[lo:hi]
            store = Store([self.weights[slice(*own)]], own[0], 1, net.backend, self.chain, None if self.mirror is not None else net.device.kernels)
            buckets.append(Bucket(lo, hi, half, store if self.mirror is None else self.mirror.store(store, [self.there[slice(*own)]])))
            store.add_state(self.linked.state(half.total, *own))  # saved, and compared, with the store's
            for rank, (first, end) in enumerate(comm.allgather(own) if half.shares else [own]):
                if first < end:
                    if rank == comm.rank or not half.shares:
                        stores[len(shards)] = store
                    shards.append(Shard(first, end, rank))
        self.employ(task, self.total, stores, shards)
        return Stepper(self, task, buckets, self.part, record, look, self.look_seconds)

    def _by_buckets(self, net: Network) -> tuple[Training, Sequence[tuple[int, int]], list[Halves]]:
        """Allocate for sums of slices of one gradient; return the task that fills it, the slices, and their sums."""
        self.sums = coded = self._coded(net, net.backend)
        self.chosen = coded is None and self.collective.by_timing
        collective = coded or self.collective.pick(min(self.job.bucket, net.n_params * net.dtype.itemsize))
        self.picked = plugins.name_of(collective) if self.chosen or self.job.collective == Job.collective else self.job.collective
        self.gradient = self.total = collective.allocate(net.n_params, net.dtype)
        if self.compressed is not None:
            self.compressed.look_at(self.gradient)
        shared = coded is None and not needs_whole(self.links)
        self.weights = collective.weights(net.n_params, net.dtype) if shared else np.zeros(net.n_params, net.dtype)
        self.one_array = shared and self.comm.one_host and collective.in_memory
        cuts = merge_parts(net.parts(), max(1, self.job.bucket // net.dtype.itemsize))

        def halves(lo: int, hi: int) -> Halves:
            gradient = self.gradient[lo:hi]
            return collective.halves(gradient, self.weights[lo:hi]) if shared else Halves(collective.plan(gradient), Done(), 0, hi - lo, gradient, False)

        return Training(self, self.comm.rank), cuts, [halves(lo, hi) for lo, hi in cuts]

    def _stays(self, net: Network) -> bool:
        """Whether weights, gradient and optimizer stay there: not where host memory is what is summed, added to or tested by a thread."""
        job, comm = self.job, self.comm
        self.memory = job.transport == "auto" and (comm.size == 1 or max(comm.allgather(comm.host.size)) > 1)
        self.mirror: Mirror | None = None
        self.gpu_mpi = False, ""
        return net.device.kernels is not None and not self.ordered and job.progress_thread != "on"

    def _on_device(self, net: Network) -> tuple[Training, Sequence[tuple[int, int]], list[Halves]]:
        """Allocate for sums of slices of one gradient that lies on the device, as `_by_buckets` does for one of the host."""
        comm, kernels, n = self.comm, net.device.kernels, net.n_params
        coded = self._coded(net, kernels)
        on, nbytes = partial(make_collective, self._collective()), min(self.job.bucket, n * net.dtype.itemsize)
        found = Chosen(coded, "", getattr(coded, "gpu_mpi", self.gpu_mpi)) if coded is not None else choose(self.job, kernels, self.collective, on, nbytes)
        self.chosen, (self.sums, self.picked, self.gpu_mpi) = self.collective.by_timing, found
        with kernels.naming("the gradient"):
            self.gradient = self.total = kernels.zeros(n, net.dtype)
        if self.compressed is not None:
            self.compressed.look_at(self.gradient)
        self.weights, self.mirror = np.zeros(n, net.dtype), Mirror(kernels)
        self.there = self.mirror.array("the weights", self.weights)
        cuts = merge_parts(net.parts(), max(1, self.job.bucket // net.dtype.itemsize))

        def total(gradient: Any) -> Sum:
            return found.sums.plan(gradient) if comm.size > 1 or coded is not None else Done()  # alone nothing travels

        return OfMirror(self, comm.rank).stay(kernels), cuts, [Halves(total(own := self.gradient[lo:hi]), Done(), 0, hi - lo, own, False) for lo, hi in cuts]

    def _coded(self, net: Network, kernels: Any) -> Any:
        """Return what sums in codes that `kernels` make: over all ranks, or where several share a host over one of each; None where nothing is sent."""
        job = self.job
        if not job.compress or (self.memory and self.comm.one_host):
            return None
        self.compressed = coded = Compressed(job.compress, net.params, net.dtype, kernels, job.seed)
        self.step = coded.step
        if not self.memory:
            coded.open(self.comm)
            return coded
        hosts: Any = Hierarchical() if kernels.gpu is None else CodedHosts(job, kernels, min(job.bucket, net.n_params * net.dtype.itemsize))
        hosts.open(self.comm, coded)
        if hosts.outer is None:  # another rank of this host encodes
            self.compressed = None
        return hosts

    def _by_blocks(self, net: Network) -> tuple[Training, Sequence[tuple[int, int]], list[Halves]]:
        """Allocate for sums of blocks, as `_by_buckets` does for sums of slices; there is one sum, at the end of the pass."""
        collective: Any = self.collective
        self.picked, self.chosen = ORDERED, False
        tree = collective.tree()
        rows = np.zeros((len(tree.rows), collective.room(net.n_params, N_LOSSES)), net.dtype)
        self.gradient, self.total = rows[slice(*tree.first_row[self.comm.rank :][:2])], rows[0, : net.n_params]
        self.weights = np.zeros(net.n_params, net.dtype)
        halves = collective.halves_of_blocks(rows, tree, self.weights, whole=self.links is not None)
        task = BlockTraining(self, self.comm.rank, tree, rows)
        losses = rows[0, -N_LOSSES:]
        tells = collective.owner(rows.shape[1], rows.shape[1] - N_LOSSES) == self.comm.rank
        self.loss = lambda: float(losses[0]) + float(losses[1]) if tells else 0.0
        return task, [(0, net.n_params)], [halves]

    @property
    def n_keepers(self) -> int:
        """How many ranks keep what their codes have left."""
        return self.compressed.comm.size if self.compressed is not None else 0

    def kept(self) -> list[tuple[str, int, int, Array]]:
        """List what is to be saved besides weights and optimizer: name, first element, elements in all, array."""
        return self.compressed.kept() if self.compressed is not None else []

    def restore(self, read: Callable[[str, int, Array], bool], n_before: int) -> None:
        """Let `read` fill what `kept` lists; a run without codes has nothing for them."""
        if self.compressed is not None and n_before:
            self.compressed.restore(read, n_before)

    def refresh(self) -> None:
        """Bring the weights that each rank owns to all others, where they were changed other than by a step (Collective on comm)."""
        for bucket in self.driver.buckets:
            bucket.halves.gather.start()
            bucket.halves.gather.wait(self.job.wait_limit)
        if self.mirror is not None:
            self.mirror.up()

    def transform(self, step: int) -> None:
        """Run the links that need the whole gradient."""
        self.linked.transform(step)

    def land(self) -> None:
        """Bring what the device has of weights and optimizer to the host."""
        if self.mirror is not None:
            self.mirror.down()

    def alike(self) -> list[tuple[int, Array]]:
        """Give what every rank holds for itself: weights, and where all change them the optimizer."""
        self.land()
        optimizer = [(self.extent(number)[0], array) for number, store in self.stores.items() if not self.shares for array in store.optimizer.values()]
        return [(0, self.weights), *optimizer]

    @property
    def promise(self) -> str:
        """Say what is repeated."""
        return "ordered: same bits at any number of ranks" if self.ordered else super().promise

    @property
    def in_codes(self) -> bool:
        """Whether codes travel in place of gradients: not inside a host, whose ranks share memory."""
        return bool(self.job.compress) and not (self.memory and self.comm.one_host)

    def words(self) -> str:
        """Say how the ranks work together."""
        owners = sorted({shard.server for _, shard in self.shards})
        some = f"{len(owners)} ranks own" if len(owners) > 1 else f"rank {owners[0]} alone owns"
        owner = "each owns a part of weights and optimizer" if len(owners) == self.n_workers else f"{some} weights and optimizer"
        owner = owner if self.shares else "each changes all weights and holds all of the optimizer"
        chosen, alone = " (chosen by measurement)" * self.chosen, ["collective"] * (not self.ordered) + ["bucket"] * (not self.in_codes)
        alone += ["transport"] * (self.job.transport == "mpi" and not self.in_codes)
        what = f"{self.sampler.n_blocks} blocks a batch" if self.ordered else f"sums by {self.picked}{chosen}, buckets from {self.job.bucket / 1e6:g} MB"
        if self.job.compress:
            off = f"--compress {self.job.compress} is off: the ranks share memory and send nothing (--transport mpi: on)"
            what = f"{off}; {what}" if self.memory and self.comm.one_host else f"codes {self.job.compress}, buckets from {self.job.bucket / 1e6:g} MB"
        if self.mirror is not None:
            owner += "; weights and optimizer stay on the device" + f", {self.sums.way}" * (self.n_workers > 1 or self.compressed is not None)
        thread = "; a progress thread on each rank" if self.progress.n_tests is not None else ""
        return f"{self.n_workers} worker(s); {what}; {owner}{thread}{self.asides(*alone, 'shares', 'check_replicas')}"

    def told(self) -> dict[str, Any]:
        """Return on rank 0 what summed, None where nothing was or in codes, and how many tests each rank's progress thread has made (Collective on comm)."""
        tests = self.comm.gather(self.progress.n_tests) or []
        found: dict[str, Any] = {"collective": None if self.in_codes or self.n_workers == 1 else self.picked}
        found |= {"progress_thread_tests": tests} if any(n is not None for n in tests) else {}
        return found | verdict(self.comm, self.gpu_mpi)

    def free(self) -> None:
        """Free requests and communicators, and end the thread (Collective on comm)."""
        self.progress.stop()
        super().free()
        for bucket in self.driver.buckets:
            bucket.free()
        self.linked.free()
        if self.sums is not None:
            self.sums.free()
        self.collective.free()
