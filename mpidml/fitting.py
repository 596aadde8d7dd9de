"""Fit the costs of a job's parts to a short run on the ranks at hand: what a compute takes, an update, a message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, variance
from typing import Any, NamedTuple

from mpidml.core.cost import CostModel
from mpidml.core.job import OF_STRATEGIES, Job
from mpidml.core.placement import computing
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.info import pingpong
from mpidml.strategies.base import train

FIT_CLOCKS = 60
WARM_UP_CLOCKS = 5
SLOWER, SURE = 1.2, 4.0
"""A worker is slow whose steps take so many times those of the others, and that is so many standard errors."""
ALONE_CLOCKS = 40
MOST_SAMPLES = 4096
"""Of a batch that one process computes: beyond them what a step costs besides is nothing."""


class Fitted(NamedTuple):
    """The costs, and the run that they are of."""

    cost: CostModel
    n_workers: int
    colocated: bool
    samples_per_second: float
    slow: str = ""
    """What there is to say of a rank that was slow throughout."""


def fit(job: Job, share: int, comm: CountedComm, latency: float = CostModel.latency) -> Fitted | None:
    """Return on rank 0 the costs of computes of `share` samples, None elsewhere (Collective on comm); `latency`: that of one rank, which sends nothing.

    The run is one of servers and workers that wait for nobody, whatever the job's strategy: the costs of its computes are those of any.
    """
    workers = computing(comm.size, job.servers)
    servers = "colocated" if workers == comm.size else str(comm.size - workers)
    summary, kept = _run(job, {"servers": servers, "batch": share * workers, "steps": FIT_CLOCKS}, comm)
    if comm.size > 1:
        latency = pingpong(comm.mpi, comm.size - 1)[0]
    if comm.rank:
        return None
    cost = replace(_cost(summary, kept["step_seconds"], comm.size), latency=latency, samples=share)
    slow = slow_rank([of[WARM_UP_CLOCKS:] for of in kept["step_seconds"]], comm.size - workers)
    return Fitted(cost, workers, servers == "colocated", summary["samples_per_second"], slow)


def slow_rank(step_seconds: Sequence[Sequence[float]], first: int) -> str:
    """Say which worker's steps took longer than those of the others, by more than their spread explains; `first`: the rank of worker 0. "" for none."""
    n = len(step_seconds)
    if n < 2 or min(map(len, step_seconds)) < 2:
        return ""
    slow = max(range(n), key=lambda w: fmean(step_seconds[w]))
    own, others = step_seconds[slow], [s for w, of in enumerate(step_seconds) if w != slow for s in of]
    ratio, error = fmean(own) / max(fmean(others), 1e-12), math.sqrt(variance(own) / len(own) + variance(others) / len(others))
    if ratio < SLOWER or fmean(own) - fmean(others) < SURE * error:
        return ""
    return (
        f"rank {first + slow} was slow throughout, its steps took {ratio:.2f} times those of the others: the simulation takes all workers alike, "
        f"and this as jitter; fit without that rank, and give --slowdown permanent:{ratio:.2g} for a slow one"
    )


def fit_alone(job: Job, comm: CountedComm) -> CostModel | None:
    """Return on rank 0 the costs of the whole batch in one process, None elsewhere: rank 0 runs a few clocks, the others wait (Collective on comm).

    More samples than MOST_SAMPLES, or than there are, take as much longer.
    """
    part = comm.watched("split", comm.mpi.Split, min(comm.rank, 1), comm.rank)
    found: CostModel | None = None
    if comm.rank == 0:
        ranks = CountedComm(part)
        summary, kept = _run(job, {"servers": "colocated", "batch": min(job.batch, MOST_SAMPLES), "steps": ALONE_CLOCKS}, ranks)
        ranks.free()
        ends = [row["seconds"] for row in kept["metrics"][WARM_UP_CLOCKS:]]  # of clocks, with their updates and all that is between, but no look
        found = CostModel(tuple(max(b - a, 0.0) * job.batch / summary["batch"] for a, b in pairwise(ends)), samples=job.batch, source="fitted")
    comm.Barrier()
    part.Free()
    return found


def of_one_process(cost: CostModel, n_workers: int, measured: CostModel | None) -> CostModel:
    """Return what the work of all workers costs one process, which has no network: as `measured`, else all shares one after the other."""
    if measured is None:
        measured = replace(cost, compute=tuple(s * n_workers for s in cost.compute))
    return replace(measured, jitter=cost.jitter, latency=0.0, bytes_per_second=0.0, message=0.0)


def _run(job: Job, changes: dict[str, Any], comm: CountedComm) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the job by servers and workers that wait for nobody; return its summary and what it keeps."""
    plain: dict[str, Any] = {name: getattr(Job, name) for name in OF_STRATEGIES}
    plain |= {"strategy": Job.strategy, "sync": "asp", "compress": "", "deterministic": False}
    plain |= {"epochs": 0, "seconds": 0.0, "slowdown": "", "tensorboard": False, "out": ""}
    kept: dict[str, Any] = {}
    summary = train(job.with_values(plain | changes, "fit"), comm, quiet=True, write=False, keep=kept)
    return summary, kept


def _cost(summary: dict[str, Any], step_seconds: list[list[float]], n_ranks: int) -> CostModel:
    """Return the costs of a run's computes and updates."""
    steps = [s for of in step_seconds for s in of[WARM_UP_CLOCKS:]]
    total = sum(s for of in step_seconds for s in of)
    serve = sum(summary["serve_seconds"])
    looked = n_ranks * summary["evaluation_seconds"]
    pure = min(max(sum(summary["compute_seconds"]) - looked - serve, 0.0) / total, 1.0)  # a step's seconds hold what it served meanwhile, and no look
    n_steps = sum(len(of) for of in step_seconds)
    driving = sum(summary["comm_seconds"]) / n_steps  # what a clock takes besides, of every rank
    return CostModel(tuple(s * pure + driving for s in steps), apply=serve / n_steps, source="fitted")
