"""What strategies share that cut a network into stages: ranks on a grid, each with its stages of one replica, and programs that say what they do.

    data 0    rank 0: stage 0 -> rank 1: stage 1         microbatches of the replica's share of each batch flow through its stages
                 |                  |                    gradients of a stage are summed over its replicas
    data 1    rank 2: stage 0 -> rank 3: stage 1

A stage's parameters are a range of the network's flat ones, so a checkpoint of any grid fits any other. The first replica's ranks save them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from mpidml.collectives.base import FOLDER, Collective, Sum
from mpidml.core import plugins
from mpidml.core.balance import Plan, Profile, balanced, by_hand, priced
from mpidml.core.errors import UserError
from mpidml.core.grid import ProcessGrid, parse_grid
from mpidml.core.job import Job
from mpidml.core.lowering import lower
from mpidml.core.partition import Shard
from mpidml.core.program import Program
from mpidml.core.replay import Replay, replay
from mpidml.nn.stage import Stage, n_cuts
from mpidml.optim.base import make_chain
from mpidml.ps.store import Store
from mpidml.runtime.channel import Line, Waiting, open_channels
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.held import Held, Local
from mpidml.runtime.profiling import counted, profiles
from mpidml.runtime.scoring import BLOCK
from mpidml.runtime.serverless import Recorder, Serverless
from mpidml.runtime.staged_training import GridStepper, StageTraining
from mpidml.schedules.base import Schedule

PER_STAGE = 4
"""Microbatches for each stage, where their number is not given: a bubble of a fifth at most."""
ELSEWHERE = ("bucket", "shares", "averaging", "average_every", "accumulate", "check_replicas", "compress")


class GridPlacement:
    """Which rank tells of which replica, the one that computes its loss; ranks are called by their places on the grid."""

    def __init__(self, grid: ProcessGrid, tellers: tuple[int, ...]) -> None:
        self.grid, self.n_ranks, self.server_ranks, self.worker_ranks = grid, grid.n_ranks, (), tellers

    def names(self) -> list[list[str]]:
        """List what each rank is."""
        return [[self.grid.name(rank)] for rank in range(self.n_ranks)]


class Staged(Serverless):
    """Cut a network into stages and train it on data (Collective on comm); `prepare` makes the `driver` that runs programs."""

    whole = False
    default_axis = "pipe"

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        self.grid = parse_grid(job.grid or f"{self.default_axis}={comm.size}", comm.size)
        if self.grid.sizes["tensor"] > 1:
            raise UserError(f"--grid {job.grid}: layers are not split over ranks yet; give tensor=1")
        self.n_pipe, self.at = self.grid.sizes["pipe"], self.grid.coords(comm.rank)
        tellers = tuple(self.grid.rank(data=d, pipe=self.n_pipe - 1) for d in range(self.grid.sizes["data"]))
        super().__init__(job, comm, GridPlacement(self.grid, tellers))
        job.refuse(ELSEWHERE, f"--strategy {job.strategy}")
        self.schedule: Schedule = plugins.make("mpidml.schedules", job.schedule)
        if not self.schedule.trains:
            raise UserError(f"--schedule {job.schedule}: has no backward passes, nothing would be learnt; use one_f_one_b")
        try:
            self.every = self.schedule.update_every(self.n_pipe)
        except ValueError as error:
            raise UserError(f"--schedule {job.schedule}: {error}") from None
        if self.every and job.microbatches:
            raise UserError(f"--microbatches {job.microbatches}: --schedule {job.schedule} says itself how many make an update, {self.every}; leave it out")
        self.n_stages = self.n_pipe * self.schedule.n_chunks
        most = max(1, job.batch // self.n_workers)
        self.n_items = self.every or job.microbatches or min(most, PER_STAGE * self.n_stages if self.n_stages > 1 else 1)
        if self.n_items > most:
            raise UserError(f"--microbatches {self.n_items}: a replica's share of --batch {job.batch} is {most} sample(s); give at most {most}, or a larger batch")
        if job.recompute and any(action.op == "W" for action in self.program().lists[0]):
            raise UserError(f"--recompute: --schedule {job.schedule} comes back to activations twice, they would have to be computed as often; use another schedule")
        self.links, self.after = make_chain(job.optimizer, job.rate).split()
        if self.links is not None and self.n_stages > 1 and any(link.scope == "global" for link in self.links.links):
            raise UserError(f"--optimizer {job.optimizer}: measures the whole gradient, and each rank has a stage's; use links such as clamp, lars or adam")
        self.summing = job.collective if job.collective != Job.collective or not job.deterministic else "ring"
        self.collective: Collective = plugins.make(FOLDER, self.summing)
        if not self.collective.exact:
            raise UserError(f"--collective {job.collective}: does not sum over all ranks; use one of ring, rabenseifner, tree, mpi, auto")

    def program(self, n_clocks: int = 1) -> Program:
        """Return the program of so many clocks; more than one where nothing waits for the end of each."""
        return lower(self.schedule, self.n_pipe, self.n_items * n_clocks, sums=self.n_workers > 1)

    @cached_property
    def replayed(self) -> Replay:
        """Return the replay that proves the program, and says what is kept at once."""
        return replay(self.program(self.n_pipe + 2 if self.every else 1))

    def build(self, record: Recorder, look: Callable[[float], None]) -> Any:
        """Cut, open channels, and fill the first weights; return what steps (Collective on comm)."""
        net, comm = self.net, self.comm
        share = -(-min(self.job.batch, len(self.data.x)) // self.n_workers)
        self.m = -(-share // self.n_items)
        self.plan = self._plan()
        ends = [stage.hi for stage in self.plan.stages]
        self.all_stages = [Stage(net, lo, hi, s == 0, s == self.n_stages - 1) for s, (lo, hi) in enumerate(pairwise([0, *ends]))]
        self.waiting = Waiting(self.job.wait_limit)
        self.collective.open(comm)
        self.pipeline: Any = comm.split(self.at["data"])
        self.replicas: Any = comm.split(self.at["pipe"])
        self.between: Collective = plugins.make(FOLDER, self.summing)
        self.between.open(self.replicas)
        self.held, self.sums, self.link_states = dict[int, Held](), dict[int, Sum](), dict[int, Any]()
        channels = self._channels()
        stores: dict[int, Store] = {}
        shards: list[Shard] = []
        for s, stage in enumerate(self.all_stages):
            if s % self.n_pipe == self.at["pipe"]:
                self.held[s] = self._hold(stage, s, channels)
                if stage.n_params:
                    stores[len(shards)] = self.held[s].store
            if stage.n_params:
                shards.append(Shard(stage.start, stage.stop, self.grid.rank(pipe=s % self.n_pipe)))
        self.weights = np.zeros(0, net.dtype)
        task = StageTraining(self, self.at["data"])
        self.employ(task, np.zeros(0, net.dtype), stores, shards)
        return GridStepper(self, task, self.part, record, look, self.look_seconds)

    def _plan(self) -> Plan:
        """Cut the layers into stages: by hand, or by what they cost rank 0, or where bits are to repeat by what is computed (Collective on comm)."""
        measure = counted if self.job.deterministic else profiles
        costs = self.comm.bcast(measure(self.net, self.m) if self.comm.rank == 0 and self.n_stages > 1 else None)
        if costs is None:
            return Plan((by_hand(str(n_cuts(self.net)), n_cuts(self.net), 1)), 0.0, "stage", 0, "")
        self.profiles: list[Profile] = costs
        if self.job.partition != Job.partition:
            return priced(costs, by_hand(self.job.partition, n_cuts(self.net), self.n_stages), 0.0)
        return balanced(costs, self.n_stages, 0.0)

    def _channels(self) -> list[tuple[Any, Any]]:
        """Open what is between each two stages: forward and back, None where this rank has neither (Collective on comm)."""
        lines = list[Line]()
        kept = self.replayed.activations
        for data in range(self.n_workers):
            for s in range(self.n_stages - 1):
                a, b = (self.grid.rank(data=data, pipe=stage % self.n_pipe) for stage in (s, s + 1))
                m, width, n = max(self.m, BLOCK), self.all_stages[s].n_out, max(kept[s], kept[s + 1] + 1)  # one is on its way
                lines += [Line(a, b, m, width, n, f"the output of stage {s}"), Line(b, a, m, width, n, f"the gradient of stage {s}'s output")]
        if self.n_pipe == 1:
            sides: list[Any] = [Local(line, np.zeros((line.n_slots, line.m, line.width), self.net.dtype)) for line in lines]
        else:
            sides = open_channels(self.comm, lines, self.net.dtype, self.job.transport == "auto", self.waiting)
        own = sides[self.at["data"] * 2 * (self.n_stages - 1) :]
        return [(own[2 * s], own[2 * s + 1]) for s in range(self.n_stages - 1)]

    def _hold(self, stage: Stage, s: int, channels: list[tuple[Any, Any]]) -> Held:
        """Make this rank's stage number s, with its weights and their sums (Collective on its replicas)."""
        net, job, after = self.net, self.job, s < self.n_stages - 1
        initial = stage.init(job.seed)
        store = Store([initial, *(initial.copy() for _ in range(self.replayed.versions[s] - 1))], stage.start, 1, net.backend, self.after)
        chosen = self.between.pick(initial.nbytes)
        own = (channels[s - 1][0] if s else None, channels[s][0] if after else None, channels[s][1] if after else None, channels[s - 1][1] if s else None)
        gradient = chosen.allocate(stage.n_params, net.dtype)
        held = Held(stage, s, store, gradient, self.n_items, self.replayed.activations[s], max(self.m, BLOCK), job.recompute, own)
        if self.n_workers > 1:
            self.sums[s] = chosen.plan(gradient)
        if self.links is not None:
            self.links.see(stage.params)
            self.link_states[s] = self.links.init(stage.n_params, net.dtype)
        return held

    def check_alike(self) -> None:
        """Compare the weights and optimizers of each stage's replicas (Collective on comm). RuntimeError names who differs."""
        digests = {}
        for s, held in self.held.items():
            digest = hashlib.blake2b(held.weights().data)
            for array in held.store.optimizer.values():
                digest.update(array.data)
            digests[s] = digest.hexdigest()
        for rank, found in enumerate(every := self.comm.allgather(digests)):
            first = every[self.grid.rank(pipe=self.grid.coords(rank)["pipe"])]
            if odd := [s for s in found if found[s] != first[s]]:
                raise RuntimeError(f"replicas differ: after clock {self.driver.clock} rank {rank} has other weights or optimizer state of stage {odd[0]} than replica 0")

    def words(self) -> str:
        """Say how the ranks work together."""
        layers = ",".join(str(stage.hi - stage.lo) for stage in self.plan.stages)
        parts = f"{self.n_items} microbatches a {'clock' if self.every else 'batch'}"
        return f"grid {self.grid}, schedule {self.job.schedule}, {parts}; {self.n_stages} stage(s) of {layers} layers"

    def free(self) -> None:
        """Free requests and communicators (Collective on comm)."""
        for held in self.held.values():
            held.free()
        for total in self.sums.values():
            total.free()
        self.between.free()
        self.collective.free()
        for part in (self.pipeline, self.replicas):
            part.free()
