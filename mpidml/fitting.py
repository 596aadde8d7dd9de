"""Fit the costs of a job's parts to a short run on the ranks at hand: what a compute takes, an update, a message."""

from __future__ import annotations

from typing import Any, NamedTuple

from mpidml.core.cost import CostModel
from mpidml.core.job import OF_STRATEGIES, Job
from mpidml.core.placement import computing
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.info import pingpong
from mpidml.strategies.base import train

FIT_CLOCKS = 60
WARM_UP_CLOCKS = 5


class Fitted(NamedTuple):
    """The costs, and the run that they are of."""

    cost: CostModel
    n_workers: int
    colocated: bool
    samples_per_second: float


def fit(job: Job, share: int, comm: CountedComm, latency: float = CostModel.latency) -> Fitted | None:
    """Return on rank 0 the costs of computes of `share` samples, None elsewhere (Collective on comm); `latency`: that of one rank, which sends nothing.

    The run is one of servers and workers that wait for nobody, whatever the job's strategy: the costs of its computes are those of any.
    """
    workers = computing(comm.size, job.servers)
    servers = "colocated" if workers == comm.size else str(comm.size - workers)
    plain: dict[str, Any] = {name: getattr(Job, name) for name in OF_STRATEGIES if name != "servers"}
    plain |= {"strategy": Job.strategy, "sync": "asp", "servers": servers, "compress": "", "deterministic": False}
    plain |= {"batch": share * workers, "steps": FIT_CLOCKS, "epochs": 0, "seconds": 0.0, "slowdown": "", "tensorboard": False, "out": ""}
    kept: dict[str, Any] = {}
    summary = train(job.with_values(plain, "fit"), comm, quiet=True, write=False, keep=kept)
    if comm.size > 1:
        latency = pingpong(comm.mpi, comm.size - 1)[0]
    if comm.rank:
        return None
    steps = [s for of in kept["step_seconds"] for s in of[WARM_UP_CLOCKS:]]
    total = sum(s for of in kept["step_seconds"] for s in of)
    serve = sum(summary["serve_seconds"])
    looked = comm.size * summary["evaluation_seconds"]
    pure = min(max(sum(summary["compute_seconds"]) - looked - serve, 0.0) / total, 1.0)  # a step's seconds hold what it served meanwhile, and no look
    n_steps = sum(len(of) for of in kept["step_seconds"])
    driving = sum(summary["comm_seconds"]) / n_steps  # what a clock takes besides, of every rank
    cost = CostModel(tuple(s * pure + driving for s in steps), 0.0, latency, 0.0, serve / n_steps, 0.0, share, "fitted")
    return Fitted(cost, workers, servers == "colocated", summary["samples_per_second"])
