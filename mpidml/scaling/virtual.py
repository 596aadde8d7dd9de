"""Simulate the points of a scaling study: servers and workers, and sums, on virtual clocks as `simulate` does, networks that are cut as `plan` prices them.

    costs of computes      measured with the fewest ranks, at a share of the batch and a small part of it; a line between
    inside a host          what was measured there; payloads of servers take no time in shared memory
    between hosts          what was measured there, else --latency and --bandwidth; more ranks than were measured lie on as full hosts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

from mpidml.core.cost import CostModel
from mpidml.core.errors import UserError
from mpidml.core.job import STAGED, Job
from mpidml.core.plan_request import PlanRequest
from mpidml.core.scale_request import sized
from mpidml.core.share_cost import ShareCosts
from mpidml.core.simulation import Simulation
from mpidml.nn.network import Network
from mpidml.nn.parts import NetParts
from mpidml.optim.base import make_chain
from mpidml.planner.candidate import Candidate
from mpidml.planner.layout import laid_out
from mpidml.planner.machine import Link, Machine
from mpidml.planner.price import Cost, Costs, Pricer, Task
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import load
from mpidml.runtime.net import build_net
from mpidml.runtime.payload import refuse_sparse
from mpidml.runtime.scoring import BLOCK
from mpidml.scaling.folder import Study
from mpidml.scaling.rows import Row, numbers
from mpidml.sim import data_parallel
from mpidml.sim.summary import of_job
from mpidml.simulate import fits_memory, of_sizes, planned

MOST_STEPS = 300_000
"""Steps of all workers together that are simulated, if each has LEAST_CLOCKS."""
LEAST_CLOCKS = 20


class Place(NamedTuple):
    """Hosts that so many ranks are on, ranks and cores of a full one, what is between ranks, and whether that crosses hosts."""

    hosts: int
    per_host: int
    cores: int
    link: Link
    crosses: bool


class Virtual:
    """Simulate points of `study` by its costs; `comm`: this process alone. `used`: the costs of each number of ranks that ran on virtual clocks."""

    def __init__(self, study: Study, comm: CountedComm) -> None:
        self.study, self.comm, self.costs = study, comm, study.costs
        every = [point for kind in ("strong", "weak") for _, point in sorted(study.points(kind).items()) if "runs" in point]
        self.used: dict[int, CostModel] = {}
        self.placed = {point["ranks"]: point for point in every}
        self.links = {crosses: self._measured(crosses) for crosses in (False, True)}

    def _measured(self, crosses: bool) -> Link | None:
        """Return what the fewest ranks measured inside a host, or between some."""
        found = [point["link"] for _, point in sorted(self.placed.items()) if point["link"] and (point["hosts"] > 1) == crosses]
        return Link(*found[0]) if found else None

    @property
    def per_host(self) -> int:
        """Return how many ranks a host of the simulation has: as many as were measured on one; as many as its cores where one rank alone was."""
        most = max((point["ranks_per_host"] for point in self.placed.values()), default=1)
        cores = max((point["cores"] for point in self.placed.values()), default=1)
        return cores if max(self.placed, default=1) == 1 else most

    @cached_property
    def net(self) -> Network:
        """Return the network whose parameters travel."""
        data = load(self.study.job, self.comm)
        refuse_sparse(data, "scale")
        net = build_net(self.study.job, data, "numpy")
        data.close()
        return net

    def place(self, n_ranks: int) -> Place:
        """Return where `n_ranks` lie."""
        point = self.placed.get(n_ranks)
        per_host = point["ranks_per_host"] if point else self.per_host
        hosts = point["hosts"] if point else ceil(n_ranks / per_host)
        request = self.study.request
        crosses = hosts > 1
        between, inside = Link(request.latency, request.bandwidth), Link(PlanRequest.host_latency, PlanRequest.host_bandwidth)
        cores = point["cores"] if point else max((of["cores"] for of in self.placed.values()), default=1)
        return Place(hosts, per_host, cores, self.links[crosses] or (between if crosses else inside), crosses)

    def assumed(self, numbers_of_ranks: Mapping[int, Any]) -> str:
        """Say what the simulation takes for granted, and what was measured."""
        said = []
        for crosses, words in ((False, "inside a host"), (True, "between hosts")):
            places = [place for n in numbers_of_ranks if n > 1 and (place := self.place(n)).crosses == crosses]
            if places:
                how = "measured" if self.links[crosses] else "assumed; --latency and --bandwidth say others" if crosses else "assumed"
                said.append(f"{words} {places[0].link.latency * 1e6:.3g} us, {places[0].link.bytes_per_second / 1e9:.3g} GB/s ({how})")
        head = f"simulated: {self.per_host} rank(s) a host" if any(n not in self.placed for n in numbers_of_ranks) else "simulated"
        return "; ".join([head, *said])

    def point(self, kind: str, n_ranks: int) -> Row:
        """Return the numbers of a simulated point, or why there are none."""
        job = sized(self.study.job, kind, n_ranks)
        try:
            self._check(job)
            strategy = laid_out(job, n_ranks)
            return self._priced(job, strategy, n_ranks) if job.strategy in STAGED else self._run(job, strategy.n_workers, n_ranks)
        except UserError as error:
            return {"skipped": str(error)}

    def _check(self, job: Job) -> None:
        if job.strategy not in STAGED:
            if job.strategy != Job.strategy:
                data_parallel.check(job.strategy, job.collective, False)
                if job.compress:
                    raise UserError(f"--compress {job.compress}: what sums of codes cost is not known on virtual clocks; simulate without it")
        elif job.slowdown or job.partition not in ("auto", "equal") or job.policy() != Job.sync:
            flag = next(name for name in ("slowdown", "partition", "sync") if getattr(job, name) != getattr(Job, name))
            raise UserError(f"--{flag} {getattr(job, flag)}: has no price in the planner; it is measured only")
        if not self.costs:
            raise UserError("costs: none were measured, since the fewest ranks that were asked for have not run; measure them")

    def cost(self, job: Job, n_workers: int, n_ranks: int) -> CostModel:
        """Return the costs of a job's parts on so many ranks."""
        of = ShareCosts(*(CostModel.from_mapping(self.costs[name], "costs") for name in ("large", "small")))
        found = of.at(max(job.batch // n_workers, 1))
        if n_ranks == 1:
            return replace(found, latency=0.0, bytes_per_second=0.0)
        place = self.place(n_ranks)
        moves = place.crosses or job.transport == "mpi" or job.strategy != Job.strategy
        return replace(found, latency=place.link.latency, bytes_per_second=place.link.bytes_per_second if moves else 0.0)

    def _run(self, job: Job, n_workers: int, n_ranks: int) -> Row:
        """Run a point on virtual clocks."""
        clocks = min(job.steps, max(LEAST_CLOCKS, MOST_STEPS // n_workers))
        self.used[n_ranks] = cost = self.cost(job, n_workers, n_ranks)
        plan = planned(Simulation(workers=n_workers, clocks=clocks), job, cost, self.net if cost.bytes_per_second else None)
        fits_memory([plan])
        summary, _ = of_job(job, plan, of_sizes(job, plan), 0.0)
        seconds = job.batch * summary["seconds"] / summary["samples"] if summary["samples"] else float("nan")
        return numbers(summary, seconds, job.batch) | {"clocks": clocks}

    def _priced(self, job: Job, strategy: Any, n_ranks: int) -> Row:
        """Let the planner price a point."""
        if strategy.every:
            raise UserError(f"--schedule {job.schedule}: ends no batch by a flush, and the planner counts seconds of a batch; it is measured only")
        if job.replicas:
            raise UserError(f"--replicas {job.replicas}: the planner prices grids alone; it is measured only")
        sizes = strategy.grid.sizes
        of = Candidate(sizes["data"], sizes["pipe"], sizes["tensor"], job.schedule if sizes["pipe"] > 1 else "", strategy.n_items, job.recompute)
        data_parallel.check("data_parallel", job.collective, False)
        chain = make_chain(job.optimizer, job.rate)
        place, inside = self.place(n_ranks), self.links[False] or Link(PlanRequest.host_latency, PlanRequest.host_bandwidth)
        machine = Machine(n_ranks, place.hosts, place.cores, inside, place.link if place.crosses else inside, PlanRequest.wake, place.per_host)
        layers = tuple((Cost(*forward), Cost(*backward)) for forward, backward in self.costs["layers"])
        costs = Costs(layers, self.costs["update"], self.costs["add"], self.costs["rows"])
        task = Task(job.batch, chain.state_per_byte(self.net.dtype), chain.split()[0] is None, job.collective, BLOCK, job.transport != "auto")
        pricer = Pricer(task, machine, costs, NetParts(self.net))
        if why := pricer.why_not(of):
            raise UserError(f"plan: {why}")
        found = pricer.price(of)
        summary = {"compute_seconds": [1 - found.idle], "wait_seconds": [found.idle], "comm_seconds": [], "bytes_sent": [found.nbytes], "bytes_window": []}
        return numbers(summary | {"ranks": 1, "clocks": 1}, found.seconds, job.batch)
