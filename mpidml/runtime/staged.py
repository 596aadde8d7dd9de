"""What strategies share that cut a network into stages: ranks on a grid, each with its stages of one replica, and programs that say what they do.

    data 0    rank 0: stage 0 -> rank 1: stage 1         microbatches of the replica's share of each batch flow through its stages
                 |                  |                    gradients of a stage are summed over its replicas
    data 1    rank 2: stage 0 -> rank 3: stage 1

A stage's parameters are a range of the network's flat ones, so a checkpoint of any grid fits any other. The first replica's ranks save them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from mpidml_kernels import split

from mpidml.collectives.base import FOLDER, Collective, Sum, make_collective
from mpidml.core import plugins
from mpidml.core.balance import Profile
from mpidml.core.checking import check, guarded, lowered, lowered_by_turns
from mpidml.core.errors import UserError
from mpidml.core.grid import GridPlacement
from mpidml.core.idle import BESIDES
from mpidml.core.job import AUTO, Job
from mpidml.core.lowering import n_in_update
from mpidml.core.partition import Shard, cut
from mpidml.core.program import Program
from mpidml.core.replay import Replay
from mpidml.core.role import Array
from mpidml.core.slowdown import Slowdown
from mpidml.core.spans import Spans
from mpidml.core.turns import TurnGrid, agrees
from mpidml.nn.split.line_on_device import LineOnDevice
from mpidml.nn.split.mix import mixed
from mpidml.nn.split.whole import parts_of
from mpidml.nn.stage import Stage
from mpidml.optim.base import Chain, Transforms, make_chain
from mpidml.runtime import abort, alike, grid_rules, stage_report
from mpidml.runtime.arithmetic import compiled
from mpidml.runtime.bands import Bands
from mpidml.runtime.channel import Waiting
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.compressed_sum import Compressed, check_on_grid
from mpidml.runtime.held import Held
from mpidml.runtime.holding import Holding
from mpidml.runtime.line import PaperLine, TensorLine, sums_there
from mpidml.runtime.serverless import Recorder, Serverless
from mpidml.runtime.slowness import Slowness
from mpidml.runtime.stage_channels import between
from mpidml.runtime.stage_plan import EQUAL, stages
from mpidml.runtime.stage_programs import Programs, spans
from mpidml.runtime.staged_training import GridStepper, StageTraining
from mpidml.runtime.summed_there import verdict
from mpidml.schedules.base import make as make_schedule

PER_STAGE, MOST = 4, 200_000
"""Microbatches for each stage, where their number is not given: a bubble of a fifth at most."""
VOTING = "recursive_doubling"
"""Sums what rank 0 wants, two numbers."""


class Staged(Serverless):
    """Cut a network into stages and train it on data (Collective on comm); `prepare` makes the `driver` that runs programs."""

    whole = False
    default_axis: ClassVar[str] = "pipe"
    stepper: type[GridStepper] = GridStepper
    pushes = False
    """Whether replicas push to servers, instead of summing their gradients."""
    pipeline: Any
    replicas: Any
    line: Any
    profiles: list[Profile]
    speeds: list[float]
    part_weights: tuple[float, ...]

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        self.comm = comm
        super().__init__(job, comm, self.lie(grid_rules.laid(job, comm.size, self.default_axis)))
        job.refuse(BESIDES[job.strategy], f"--strategy {job.strategy}")
        self.slowness = Slowness(Slowdown(job.slowdown, comm.size, job.seed) if job.slowdown else None, comm.rank)
        self.schedule = make_schedule(job.schedule, "--schedule ")
        if not self.schedule.trains:
            raise UserError(f"--schedule {job.schedule}: has no backward passes, nothing would be learnt; use one_f_one_b")
        with guarded(f"--schedule {job.schedule}", "update_every"):
            if job.replicas:
                agrees(self.schedule, job.schedule, job.replicas)
            self.every = n_in_update(self.schedule, self.n_pipe)
        if self.every and job.microbatches:
            raise UserError(f"--microbatches {job.microbatches}: --schedule {job.schedule} says itself how many make an update, {self.every}; leave it out")
        self.n_stages = self.n_pipe * self.schedule.n_chunks
        if self.n_stages == 1 and job.partition not in (Job.partition, EQUAL):
            raise UserError(f"--partition {job.partition}: --grid {self.grid} has one stage, so there is nothing to cut; give auto, or a grid with pipe=2 or more")
        self.same_bits = not self.every and self.n_parts == 1 and not job.replicas  # whatever the cut
        most, n_each = max(1, job.batch // self.n_workers), comm.size if job.replicas else self.n_stages
        self.n_items = self.every or job.microbatches or min(most, PER_STAGE * n_each if n_each > 1 else 1)
        if self.n_stages * self.n_items > MOST:
            raise UserError(f"--schedule {job.schedule}: {self.n_stages:,} stages times {self.n_items:,} microbatches are over {MOST:,}; give fewer of either")
        if job.replicas not in ("", AUTO) and self.n_items < (turns := max(self.grid.replicas)):
            raise UserError(f"--replicas {job.replicas}: {turns} ranks take turns at {self.n_items} microbatch(es); give --microbatches {turns} or more, or fewer ranks")
        if self.n_items > most:
            given = f"--schedule {job.schedule}: makes an update of {self.n_items} microbatches" if self.every else f"--microbatches {self.n_items}"
            raise UserError(f"{given}: a replica's share of --batch {job.batch} is {most} sample(s); give at most {most}, or a larger batch")
        if job.recompute and self.program().splits:
            raise UserError(f"--recompute: --schedule {job.schedule} comes back to activations twice, they would have to be computed as often; use another schedule")
        before, _ = make_chain(job.optimizer, job.rate).split()
        if self.every and self.n_pipe > 1 and before is not None and any(link.scope == "global" for link in before.links):
            raise UserError(f"--optimizer {job.optimizer}: measures the gradient of all stages at once, which --schedule {job.schedule} changes one by one; use clamp")
        self.summing = grid_rules.summing(job)
        self.collective: Collective = plugins.make(FOLDER, VOTING)
        if job.compress:
            check_on_grid(job, self.grid)
        self.cut_layers = grid_rules.cut_layers(job, self.grid)

    def lie(self, grid: Any) -> GridPlacement:
        """Take this rank's place on a grid, and in programs; return which ranks tell of a replica."""
        rank = self.comm.rank
        self.grid, self.n_pipe, self.n_parts = grid, grid.sizes["pipe"], grid.sizes["tensor"]
        self.at, self.turn = grid.coords(rank), grid.turn(rank)
        self.place = rank if isinstance(grid, TurnGrid) else self.at["pipe"]
        self.placement = GridPlacement(grid, tuple(grid.rank(data=d, pipe=self.n_pipe - 1) for d in range(grid.sizes["data"])))
        self.tells = rank in self.placement.worker_ranks
        return self.placement

    @property
    def sums_up(self) -> bool:
        """Whether stages have replicas whose gradients are summed."""
        return self.n_workers > 1 or bool(self.job.replicas)

    def program(self, n_clocks: int = 1) -> Program:
        """Return the program of so many clocks; more than one where nothing waits for the end of each."""
        where, n = f"--schedule {self.job.schedule}", self.n_items * n_clocks
        if self.job.replicas:
            return lowered_by_turns(self.schedule, self.grid.replicas, n, where)
        return lowered(self.schedule, self.n_pipe, n, where, self.sums_up)

    def checked(self, n_clocks: int) -> tuple[Program, Replay]:
        """Return the program of so many clocks with the replay that proves it; UserError shows what in it cannot be done."""
        found = self.program(n_clocks)
        return found, check(found, f"--schedule {self.job.schedule}")

    def spans(self) -> Spans:
        """Return of how many clocks programs are."""
        return spans(self)

    @cached_property
    def programs(self) -> Programs:
        """Return all programs of the run, and what they keep at once."""
        return Programs(self)

    def build(self, record: Recorder, look: Callable[[float], None]) -> Any:
        """Cut, open channels, and fill the first weights; return what steps (Collective on comm)."""
        net, comm = self.net, self.comm
        if self.n_parts > 1 or self.cut_layers:  # before the clock runs
            compiled(self.job, comm, True, (split,))
        self.find_products(net)
        share = -(-min(self.job.batch, len(self.data.x)) // self.n_workers)
        self.m = -(-share // self.n_items)
        self.plan = stages(self)
        abort.call(self.grid.name(comm.rank) if comm.size > 1 else "")
        self.waiting = Waiting(self.job.wait_limit)
        self.collective.open(comm)
        data, pipe, tensor = self.at.values()
        of_all = bool(self.cut_layers)  # ranks that share out a batch hold parts of one network
        self.pipeline = comm.split(0 if of_all else data)
        self.replicas = comm.split(pipe * self.n_parts + tensor)
        self.line = comm.split(0 if of_all else comm.rank if self.job.replicas else data * self.n_pipe + pipe)
        self.between = make_collective(self.summing if self.replicas.size > 1 else VOTING, self.replicas)
        self.across = make_collective(self.summing if self.n_parts > 1 else VOTING, self.line)
        self.parts = TensorLine(self.across, () if of_all else self.part_weights, self.waiting, self.slowness, self.line.ranks)
        ends = [0, *(stage.hi for stage in self.plan.stages)]
        every = [self._stages(ends, PaperLine(self.parts, rank)) for rank in range(self.n_parts)]
        self.there = None if net.device.kernels is None else sums_there(self, net.device.kernels)
        every[tensor] = self._stages(ends, self.parts if net.device.kernels is None else LineOnDevice(self.parts, net.device.kernels, self.there))
        self.all_stages = every[tensor]
        self.held, self.sums, self.codes = dict[int, Held](), dict[int, Sum](), dict[int, Compressed]()
        self.coded = bool(self.job.compress) and (self.job.transport == "mpi" or not all(comm.allgather(self.replicas.one_host)))
        self.links, self.link_states = dict[int, Transforms](), dict[int, Any]()
        self.holding = Holding(self)
        channels = between(self, every)
        stores: dict[int, Any] = {}
        shards: list[Shard] = []
        for s, stage in enumerate(self.all_stages):
            here = s % self.n_pipe == pipe
            if here:
                self.held[s] = self.holding.hold(stage, s, channels)
            edges = [stage.start + edge for edge in cut(stage.stop - stage.start, self.line.size)]
            bands = Bands(self.held[s].here, stage.elements(), stage.start, stage.stop, self.line) if here and self.line.size > 1 else None
            for part, (lo, hi) in enumerate(pairwise(edges) if stage.start < stage.stop else ()):  # a band may be empty: all exchange elements
                if here and part == self.line.rank:
                    stores[len(shards)] = bands or self.held[s].here
                shards.append(Shard(lo, hi, self.grid.rank(**{"pipe": s % self.n_pipe, "data" if of_all else "tensor": part})))
        self.weights = np.zeros(0, net.dtype)
        task = StageTraining(self, data)
        self.employ(task, np.zeros(0, net.dtype), stores, shards)
        return self.stepper(self, task, self.part, record, look, self.look_seconds)

    def find_products(self, net: Any) -> None:
        """Let BLAS be looked for by what adds products: in its first call, that takes up to a second, which would be what a stage's first step takes."""
        if self.n_items > 1 and net.device.kernels is None:
            net.backend.matmul_add(*(np.zeros((1, 1), net.dtype) for _ in range(3)))

    def _stages(self, ends: list[int], line: Any) -> list[Stage]:
        """Return all stages, as the rank of `line` that it is given for has them."""
        parts = mixed(self.net, line, self.cut_layers) if self.cut_layers else parts_of(self.net, line) if self.n_parts > 1 else None
        return [Stage(self.net, lo, hi, s == 0, s == self.n_stages - 1, parts) for s, (lo, hi) in enumerate(pairwise(ends))]

    def n_versions(self, s: int) -> int:
        """Return how many versions of its weights a stage keeps."""
        return self.programs.versions[s]

    def _chains(self) -> tuple[Transforms | None, Chain]:
        """Return what transforms a stage's whole gradient, and what a rank then does to its part of it."""
        return make_chain(self.job.optimizer, self.job.rate).split()

    def refresh(self) -> None:
        """Let the device know what was changed on the host (Collective on comm)."""
        super().refresh()
        if self.holding.mirror is not None:
            self.holding.mirror.up()

    def land(self) -> None:
        """Bring what the device has of weights and optimizers to the host."""
        if self.holding.mirror is not None:
            self.holding.mirror.down()

    def check_alike(self) -> None:
        """Compare the weights and optimizers of each stage's replicas, and what its parts have whole (Collective on comm). RuntimeError names who differs."""
        alike.check(self)

    def told(self) -> dict[str, Any]:
        """Return on rank 0 what the summary says of the stages (Collective on comm)."""
        late = {"staleness_bound": self.programs.oldest} if self.every and not self.pushes else {}
        asked = [of.gpu_mpi for of in (self.holding.chosen, self.there) if of is not None]
        return stage_report.told(self) | (late if self.comm.rank == 0 else {}) | verdict(self.comm, *asked)

    @property
    def promise(self) -> str:
        """Say what is repeated, and what one rank does not do."""
        old = f"; gradients are at weights up to {oldest} update(s) old, as on no single rank" if self.every and (oldest := self.programs.oldest) else ""
        return super().promise + old

    def words(self) -> str:
        """Say how the ranks work together."""
        counts, batch = [stage.hi - stage.lo for stage in self.plan.stages], min(self.job.batch, len(self.data.x))
        cuts = stage_report.cut_words(batch, self.n_workers, self.n_items, counts, "clock" if self.every else "batch")
        codes = f"; codes {self.job.compress} between all replicas, also of one host" if self.coded else ""
        if self.job.compress and not self.coded:
            codes = f"; --compress {self.job.compress} is off: replicas share memory and send nothing (--transport mpi: on)"
        mix = f"; mix {self.job.mix}: {grid_rules.told(self.cut_layers)}" if self.cut_layers else ""
        there = self.holding.words()
        return f"grid {self.grid}, schedule {self.job.schedule}, {cuts}{mix}{codes}{there}{grid_rules.asides(self.job, self.grid, self.pushes)}"

    @property
    def n_keepers(self) -> int:
        """How many replicas keep what their codes have left."""
        return self.n_workers if self.coded else 0

    def kept(self) -> list[tuple[str, int, int, Array]]:
        """List what codes have left on this rank."""
        return [piece for coded in self.codes.values() for piece in coded.kept()]

    def restore(self, read: Callable[[str, int, Array], bool], n_before: int) -> None:
        """Let `read` fill what `kept` lists; a run without codes has nothing for them."""
        for coded in self.codes.values() if n_before else ():
            coded.restore(read, n_before)

    def free(self) -> None:
        """Free requests and communicators (Collective on comm)."""
        abort.call("")
        super().free()
        for held in self.held.values():
            held.free()
        for total in self.sums.values():
            total.free()
        self.holding.free()
        for line in filter(None, (self.there, self.parts)):
            line.free()
        for collective in (self.across, self.between, self.collective):
            collective.free()
        for part in (self.line, self.replicas, self.pipeline):
            part.free()
