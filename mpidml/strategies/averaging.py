"""Train a replica on every rank, and bring the replicas together every so many clocks: local SGD, gossip, elastic averaging.

    clock        1   2   3   4   5   6   7   8   9 ...
    rank 0      [own steps . . . . . . . . . ]-+-[own steps       each on its share of every global batch, with an optimizer of its own
    rank 1      [own steps . . . . . . . . . ]-+-[own steps
                                               |
                                mean, mixing with neighbours, or pull to a centre (`runtime.replicas`)

A gradient is the sum over the own share times n / batch, so every sample of a batch counts alike, and with the mean after each clock plain SGD or momentum
takes the steps of one rank. What is looked at and saved is the mean of all replicas, or the centre. On a device replica, gradient, optimizer and mean stay
there, and come to the host where steps pause or end; a centre that the ranks of a host share is in its memory, and goes to a device to be stepped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mpidml.collectives.base import FOLDER, Collective, make_collective
from mpidml.core import plugins
from mpidml.core.errors import UserError, nearest
from mpidml.core.idle import BESIDES
from mpidml.core.job import Job
from mpidml.core.partition import Shard
from mpidml.optim.base import make_chain
from mpidml.ps.store import Store
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.device_sum import DirectSums, StagedSums, make_sums
from mpidml.runtime.mirror import Mirror
from mpidml.runtime.replicas import Elastic, ElasticAsync, Gossiping, Replicas, distances, most_moving_rate
from mpidml.runtime.serverless import Recorder, Serverless
from mpidml.runtime.stepping import Stepper, clock_now
from mpidml.runtime.summed_there import Chosen, choose, verdict
from mpidml.runtime.training import Training
from mpidml.sync.base import Tuning

WAYS = ("mean", "elastic", "elastic_async")
MOVING_RATE = 0.9
"""By how much the centre moves to the mean of the replicas, where nothing else is said; each replica's part of it is the n-th."""
SUM = "ring"
"""Sums the little that is summed where --collective says how neighbours mix, or nothing is exchanged by sums."""
MOST_DISTANCES = 200


class Averaging(Serverless):
    """Give each rank a replica and train a network on data (Collective on comm); `prepare` makes the `driver` that steps."""

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        job.check_repeats({"--averaging elastic_async": job.averaging.startswith("elastic_async")})
        super().__init__(job, comm)
        job.refuse(BESIDES["averaging"], "--strategy averaging, which sums no gradients")
        self.way, self.moving_rate = _way(job.averaging, comm.size)
        if self.way == "elastic_async":
            job.refuse(("collective",), "--averaging elastic_async, whose ranks meet in shared memory")
            if not comm.one_host:
                raise UserError("--averaging elastic_async: the centre lies in memory that all ranks share, and they are on several hosts; use elastic")
            self.vote_every = job.average_every
        chosen: Collective = plugins.make(FOLDER, job.collective)
        self.mixing = None if chosen.exact else chosen
        if self.mixing is not None and self.way != "mean":
            raise UserError(f"--averaging {job.averaging}: needs a sum over all ranks, which --collective {job.collective} does not make; leave one of them out")
        self.sums_by = SUM if self.mixing is not None or self.way == "elastic_async" else job.collective
        self.collective = plugins.make(FOLDER, self.sums_by)
        if job.deterministic and self.collective.by_timing and comm.size > 1:
            raise UserError(f"--deterministic: --collective {job.collective} chooses by timing, and each sums in an order of its own; give one, as --collective ring")
        self.chain = make_chain(job.optimizer, job.rate)
        self.weight = float(self.n_workers)
        self.chosen: Chosen | None = None
        self.mixed_there: StagedSums | DirectSums | None = None  # what takes replicas of a device to their neighbours

    def build(self, record: Recorder, look: Callable[[float], None]) -> Stepper:
        """Allocate, and fill the first replicas; return what steps (Collective on comm)."""
        net, comm, job = self.net, self.comm, self.job
        self.chain.see(net.params)
        self.collective.open(comm)
        self.kernels = net.backend if net.device.kernels is None else net.device.kernels
        self.mirror = None if net.device.kernels is None else Mirror(self.kernels)
        with self.kernels.naming("the gradient"):
            self.gradient = self.kernels.zeros(net.n_params, net.dtype)
        self.replicas = replicas = self._replicas(net.init(job.seed))
        optimizer = self.chain.init(net.n_params, net.dtype)
        replica, self.weights, self.state = replicas.replica, replicas.weights, optimizer
        if self.mirror is not None:
            replica, self.state = self.mirror.beside(replica), self.mirror.state(optimizer)
            self.weights = self.weights if isinstance(self.weights, np.ndarray) else self.mirror.beside(self.weights)
        task = Training(self, comm.rank)
        task.stay(self.kernels)
        self.employ(task, self.gradient, {0: Store([self.weights], 0, 1, net.backend)}, [Shard(0, net.n_params, 0)])
        task.flats = [replicas.replica] * 2  # what is computed with, at every step
        task.state = {"replica": replica, **optimizer}
        task.shown = replicas.shown if isinstance(replicas, ElasticAsync) else replicas.weights
        driver = Averager(self, task, (), self.part, record, look, self.look_seconds)
        replicas.wait = driver.wait
        self.looks = not job.patience and len(self.data.rows(job.looks_at)[0]) > 0
        return driver

    def _replicas(self, initial: np.ndarray[Any, Any]) -> Replicas:
        comm, job = self.comm, self.job
        sums: Any = self.collective.pick(initial.nbytes)
        self.picked = plugins.name_of(sums) if self.collective.by_timing else job.collective
        if self.mirror is not None:
            self.chosen = choose(job, self.kernels, self.collective, partial(make_collective, self.sums_by), initial.nbytes)
            sums, self.picked = self.chosen.sums, self.chosen.picked
        given = (comm, sums, initial, self.gradient, self.kernels)
        if self.mixing is not None:
            self.mixing.open(comm)
            if self.chosen is not None:
                self.mixed_there = make_sums(self.mixing, self.kernels, initial.nbytes, takes_pointers=self.chosen.gpu_mpi[0], chooses=False)
            return Gossiping(*given, self.mixed_there or self.mixing)
        if self.way == "mean":
            return Replicas(*given)
        if self.way == "elastic":
            return Elastic(*given, self.moving_rate)
        return ElasticAsync(*given, self.moving_rate)

    def refresh(self) -> None:
        """Let the device know what was changed on the host, too (Collective on comm)."""
        super().refresh()
        if self.mirror is not None:
            self.mirror.up()

    def land(self) -> None:
        """Bring what the device has of replica, optimizer and weights to the host."""
        if self.mirror is not None:
            self.mirror.down()

    def _gather(self) -> None:
        """Bring the replicas together in `weights` alone (Collective on comm)."""
        self.comm.Barrier()
        self.replicas.gather(self.driver.clock)
        self.land()

    def position(self) -> Any:
        """Return where the run stands, with the weights that stand for it in place (Collective on comm)."""
        self._gather()
        return super().position()

    def settle(self) -> None:
        """Bring the replicas together for the last time, in `weights` alone (Collective on comm)."""
        self._gather()
        super().settle()

    def told(self) -> dict[str, Any]:
        """Return on rank 0 how far the replicas were from their mean where that was known, the last time and at most 200 times (Collective on comm).

        No policy decided when they met.
        """
        self.replicas.measure(self.driver.clock)
        squares, said = self.comm.gather(self.replicas.squares), verdict(self.comm, *([] if self.chosen is None else [self.chosen.gpu_mpi]))
        if squares is None:
            return {}
        found = distances(squares)
        met = f"{self.job.averaging} every {self.job.average_every}"
        by = None if self.way == "elastic_async" or self.n_workers == 1 else self.picked
        told: dict[str, Any] = {"collective": by, "sync": met, "staleness_bound": None}
        told |= {"consensus_distance": found[-1][1], "consensus_distances": found[:: -(-len(found) // MOST_DISTANCES)]}
        return told | said

    def words(self) -> str:
        """Say how the ranks work together."""
        chosen = " (chosen by measurement)" if self.collective.by_timing else ""
        how = {
            "mean": f"their mean by {self.picked}{chosen}" if self.mixing is None else f"the mean with neighbours by {self.picked}",
            "elastic": f"pulled to a centre by {self.moving_rate:g}, summed by {self.picked}{chosen}",
            "elastic_async": f"each pulled to a centre by {self.moving_rate:g} without waiting for the others",
        }[self.way]
        there = ""
        if self.chosen is not None:
            direct = isinstance(self.mixed_there or self.chosen.sums, DirectSums)
            way = ", MPI is given them there" if direct else ", they go through the host to meet"
            way = ", where the centre comes to meet them" if self.way == "elastic_async" else way
            there = "; replicas and optimizer stay on the device" + way * (self.n_workers > 1)
        never = f" (the end alone, in {self.n_clocks} clocks)" * (self.n_clocks < self.job.average_every)
        return f"{self.n_workers} replica(s); every {self.job.average_every} clocks{never} {how}{there}{self.asides('collective')}"

    def free(self) -> None:
        """Free requests and communicators (Collective on comm)."""
        super().free()
        self.replicas.free()
        for sums in filter(None, (self.chosen and self.chosen.sums, self.mixed_there)):
            sums.free()
        self.collective.free()
        if self.mixing is not None:
            self.mixing.free()


class Averager(Stepper):
    """Run the steps of one replica, and let it meet the others."""

    def _step(self) -> None:
        strategy, clock = self.strategy, self.clock
        if strategy.looks and clock and not clock % strategy.sampler.clocks_per_epoch:
            strategy.replicas.gather(clock)  # what this step's worker will score
        super()._step()

    def _update(self) -> None:
        strategy, replicas, clock = self.strategy, self.strategy.replicas, self.clock + 1
        began = clock_now()
        tuning = Tuning() if strategy.rates is None else Tuning(strategy.rates(self.clock), 1.0)
        strategy.chain.apply(strategy.kernels, replicas.replica, replicas.replica, strategy.gradient, strategy.state, clock, tuning.rate)
        ended = clock_now()
        self.serve_seconds += ended - began
        if self.trace is not None:
            self.trace.add("apply", began, ended - began, self.clock)
        if not clock % strategy.job.average_every:
            replicas.exchange(clock)
            if self.trace is not None:
                self.trace.add("sum", ended, clock_now() - ended, self.clock, replicas.replica.nbytes)


def _way(text: str, n: int) -> tuple[str, float]:
    """Read --averaging: one of the ways, and of an elastic one the moving rate."""
    name, colon, given = text.partition(":")
    if name not in WAYS:
        raise UserError(f"--averaging {text}: there is no such way; {nearest(name, WAYS)}")
    if name == "mean":
        if colon:
            raise UserError(f"--averaging {text}: mean takes no argument; leave it out")
        return name, 1.0
    most = most_moving_rate(n if name == "elastic" else 1)
    try:
        rate = float(given) if colon else MOVING_RATE / n
    except ValueError:
        rate = 0.0
    if not 0 < rate < most:
        over = f"above 0 and below {most:.4g}, from which the centre overshoots more each time"
        raise UserError(f"--averaging {text}: the moving rate on {n} rank(s) must be a number {over}; give for example {name}:{MOVING_RATE / n:.2g}")
    return name, rate
