"""What strategies without servers share: every rank is a worker that steps by its own clock (`stepping`), all at the same one where the run pauses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from mpidml.collectives.base import Collective
from mpidml.core.buffers import Buffer
from mpidml.core.idle import OF_SERVERS
from mpidml.core.job import Job
from mpidml.core.partition import Shard
from mpidml.core.placement import Placement
from mpidml.core.position import Position
from mpidml.core.role import Array, Lease
from mpidml.core.slowdown import Slowdown
from mpidml.core.target import parse_target
from mpidml.data.sampler import Sampler
from mpidml.nn.network import Network
from mpidml.ps.store import Store
from mpidml.rates.base import make_rates
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.compressed_sum import Step
from mpidml.runtime.dataset import Dataset
from mpidml.runtime.progress_thread import ByHand
from mpidml.runtime.stepping import Part, Stepper, Votes
from mpidml.runtime.summary import AGREES
from mpidml.runtime.training import Training
from mpidml.sync.base import make_policy

START = Position()
Recorder = Callable[[int, float, str, tuple[float, ...]], None]
LOOK_SECONDS, TARGET_LOOK_SECONDS = 0.25, 0.02
"""Between looks at a run; one that has met its target goes on for about as long."""
REPEATS = "repeat: same layout, same bits"


class Serverless:
    """What the run around a strategy asks of it. One that derives from this says in `build` what its `driver` steps with.

    `weights` are the parameters that stand for the run, in `stores` with the state of their optimizer; `vote_every`: in how many clocks rank 0 may end the
    run; `whole`: each rank has all of them; `tells`: this rank tells of its worker; `weight`: by what a worker's gradient, a share of the global batch's, is multiplied.
    """

    in_step, in_place, early, repeat, copies, n_gradients = True, True, True, True, 1, 0
    worker_chain = before = load = table = first = None
    loss: Callable[[], float] | None = None
    drain_seconds = 0.0
    n_blocks, vote_every, weight = 0, 1, 1.0
    driver: Stepper
    collective: Collective
    weights: Array
    gradient: Array
    whole: ClassVar[bool] = True
    one_array = False
    """Whether the weights are one array for all ranks, so that none can have others; each part of an optimizer is then one rank's, too."""
    same_bits = False
    """Whether this promises the same bits at any number of ranks also where nobody asks for it, by --deterministic."""
    idle: ClassVar[tuple[str, ...]] = OF_SERVERS

    def __init__(self, job: Job, comm: CountedComm, placement: Any = None) -> None:
        """Read what the job alone decides; UserError names what cannot be. `placement`: of workers that are not one on each rank."""
        self.job, self.comm = job, comm
        self.learnt: dict[str, list[float]] = {}
        self.step, self.progress = Step(), ByHand()
        job.refuse(self.idle, f"--strategy {job.strategy}, which has no servers")
        job.check_repeats({"--target": job.target and not job.patience, "--seconds": job.seconds})
        self.policy = make_policy("bsp" if "sync" in self.idle else job.policy())
        self.placement = placement or Placement(comm.size, (), tuple(range(comm.size)))
        self.n_workers = len(self.placement.worker_ranks)
        job.check_workers(self.n_workers)
        self.tells = comm.rank in self.placement.worker_ranks
        self.endless = job.endless
        self.rates = make_rates(job.lr_policy, job.seconds if job.endless else 0.0)
        self.slowdown = Slowdown(job.slowdown, self.n_workers, job.seed) if job.slowdown else None
        self.coordinated = bool(job.target or job.seconds or job.checkpoint_every or job.patience)

    def prepare(
        self, net: Network, data: Dataset, record: Recorder, look: Callable[[float], None], trace: Any, over: Callable[[float], bool] | None = None
    ) -> None:
        """Take what is trained on what, and `build` (Collective on comm); `over(now)` says on rank 0 whether the time is up."""
        job = self.job
        self.net, self.data, self.trace, self.over = net, data, trace, over
        self.sampler = Sampler(len(data.x), job.batch, self.n_workers, job.seed, self.n_blocks)
        self.n_clocks = job.n_clocks(self.sampler.clocks_per_epoch)
        if self.rates is not None:
            self.rates.span(self.n_clocks)
        self.target = parse_target(job.target, job.looks_at)
        self.look_seconds = LOOK_SECONDS if self.target is None else TARGET_LOOK_SECONDS
        self.driver = self.build(record, look)
        self.comm.Barrier()  # the weights are in place before anyone reads them

    def build(self, record: Recorder, look: Callable[[float], None]) -> Stepper:
        """Allocate, fill the first weights, `employ` a worker; return what steps it (Collective on comm)."""
        raise NotImplementedError

    def employ(self, task: Training, gradient: Array, stores: dict[int, Store], shards: list[Shard]) -> None:
        """Make `task` this rank's worker beside the `stores` that lie here, of all `shards` (Collective on comm); its gradients go to `gradient`."""
        table = SimpleNamespace(name="weights", n_rows=self.net.n_params, width=1)
        self.stores, self.views = stores, [self.weights]
        self.shards = [(table, shard) for shard in shards]
        self.worker_roles = range(len(shards), len(shards) + self.n_workers)
        self.worker_role = len(shards) + task.worker
        self.rank_of = [*(shard.server for shard in shards), *self.placement.worker_ranks]
        self.coordinator = self.votes = Votes(self.collective, self.comm.rank == 0, self.progress) if self.coordinated else None
        task.gradients = [(Buffer(np.empty(0, np.uint8)), gradient, Lease(gradient))]
        self.tasks = {self.worker_role: task}
        self.part = Part()
        self.workers = {self.worker_role: self.part} if self.tells else {}

    def roles(self, position: Position = START, pause_at: int = 0) -> dict[int, Any]:
        """Go to `position`, to step until the end, or until `pause_at` clocks are done (0: never); there are no roles."""
        self.driver.clock = self.part.step = max(position.turns, default=0)
        self.driver.until = min(self.n_clocks, pause_at or self.n_clocks)
        if self.sampler.shares is not None:
            self.sampler.shares.parts = self.learnt.get("shares", self.sampler.shares.parts)
        self.refresh()
        return {}

    def refresh(self) -> None:
        """Let all ranks see what was changed of the weights other than by a step (Collective on comm)."""
        self.comm.Barrier()

    def transform(self, step: int) -> None:
        """Run what of the optimizer needs the whole gradient first, where there is any."""

    def land(self) -> None:
        """Let the host see what steps have made elsewhere, where they have."""

    def position(self) -> Position:
        """Return where the run stands, and keep the shares that were learnt for one that goes on (Collective on comm)."""
        if self.sampler.shares is not None:
            self.learnt["shares"] = self.sampler.shares.parts
        return Position(self.driver.clock, (self.driver.clock,) * self.n_workers)

    def alike(self) -> list[tuple[int, Array]]:
        """Give what must be the same on all ranks, each with the number of the parameter that it begins with."""
        return [(0, self.weights)]

    def check_alike(self) -> None:
        """Compare what is `alike` (Collective on comm). RuntimeError names who differs, and in which parameter first."""
        digests = {name: hashlib.blake2b() for name in self.net.params.slices}
        for start, array in self.alike():
            for name, of in self.net.params.slices.items():
                digests[name].update(array[max(of.start - start, 0) : max(of.stop - start, 0)].data)
        found = self.comm.allgather([digest.digest() for digest in digests.values()])
        if odd := [rank for rank, of in enumerate(found) if of != found[0]]:
            first = next(name for name, *of in zip(digests, *found, strict=True) if len(set(of)) > 1)
            who = f"after clock {self.driver.clock} rank {', '.join(map(str, odd))} has other weights or optimizer state than rank 0"
            raise RuntimeError(f"replicas differ: {who}, first in {first}")

    def settle(self) -> None:
        """Bring the weights to what the run ends with (Collective on comm)."""
        self.check_alike()

    def told(self) -> dict[str, Any]:
        """Return on rank 0 what the summary says of this strategy alone (Collective on comm)."""
        return {}

    def asides(self, *alone: str) -> str:
        """Say which flags that were given decide nothing on these ranks, `alone` those on one: no errors, as scripts run one command on any number of ranks."""
        job, found = self.job, ""
        named, _, between = job.collective.partition(":")
        given = [f"--{name.replace('_', '-')} {getattr(job, name)}" for name in alone if getattr(job, name) != getattr(Job, name)]
        if self.n_workers == 1:
            return f"; on one rank {', '.join(given)} change{'s' * (len(given) == 1)} nothing" if given else ""
        if job.transport == "mpi" and (self.n_blocks or job.collective != Job.collective):
            found = f"; {'blocks go' if self.n_blocks else 'what is summed goes'} by messages with --transport mpi as without"
        if named == "hierarchical" and between and self.comm.one_host:
            found += f"; on one host nothing goes by {between.removeprefix('between=')}"
        if job.check_replicas and self.one_array:
            found += f"; --check-replicas {job.check_replicas} finds no difference: the weights are one array, which all ranks read"
        return found

    @property
    def n_keepers(self) -> int:
        """How many ranks keep what `kept` lists."""
        return 0

    def kept(self) -> list[tuple[str, int, int, Array]]:
        """List what is to be saved besides weights and optimizer: name, first element, elements in all, array."""
        return []

    def restore(self, read: Callable[[str, int, Array], bool], n_before: int) -> None:
        """Let `read` fill what `kept` lists."""

    def extent(self, number: int) -> tuple[int, int]:
        """Return which of the network's parameters the store of that number holds."""
        return self.shards[number][1][:2]

    @property
    def promise(self) -> str:
        """Say what is repeated."""
        return REPEATS if self.job.deterministic else AGREES

    def final_values(self) -> Array:
        """Return the weights; all ranks have them."""
        return self.weights

    def free(self) -> None:
        """Free the requests of votes (Collective on comm); first, as MPI keeps a communicator for as long as it has requests."""
        if self.votes is not None:
            self.votes.sum.free()
