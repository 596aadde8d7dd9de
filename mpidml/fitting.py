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
"""A worker is slow whose steps take so many times those of the fastest, and that is so many standard errors,"""
PARTS, STEADY = 3, 1.1
"""and so many times in each of so many parts of the run."""
ALONE_CLOCKS = 40
MOST_SAMPLES = 4096
"""Of a batch that one process computes: beyond them what a step costs besides is nothing."""


class Fitted(NamedTuple):
    """The costs, and the run that they are of."""

    cost: CostModel
    n_workers: int
    n_servers: int
    """0: one beside each worker."""
    samples_per_second: float


def fit(job: Job, share: int, comm: CountedComm, latency: float = CostModel.latency) -> Fitted | None:
    """Return on rank 0 the costs of computes of `share` samples, None elsewhere (Collective on comm); `latency`: that of one rank, which sends nothing.

    The run is one of servers and workers that wait for nobody, whatever the job's strategy: the costs of its computes are those of any. A link is
    measured by a small and a large message between two hosts; inside one there is none, payloads lie in shared memory or cost the ranks' own time.
    """
    workers = computing(comm.size, job.servers)
    n_servers = comm.size - workers
    summary, kept = _run(job, {"servers": str(n_servers or "colocated"), "batch": share * workers, "steps": FIT_CLOCKS}, comm)
    rate = 0.0
    if comm.size > 1:
        partner = comm.bcast(next((rank for rank, here in enumerate(comm.host_rank_of) if here < 0), comm.size - 1))
        latency, rate = pingpong(comm.mpi, partner)
        rate *= not comm.one_host
    if comm.rank:
        return None
    cost = replace(_cost(summary, kept["step_seconds"], share), latency=latency, bytes_per_second=rate, samples=share)
    return Fitted(cost, workers, n_servers, summary["samples_per_second"])


def slowness(step_seconds: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return how many times as long as those of all workers that are alike each worker's steps took; 1 for these, () where there are no others.

    Slow is who is so for good: against the fastest worker by SLOWER, by more than the spread explains, and in each part of the run. What comes and goes is jitter.
    """
    n = len(step_seconds)
    if n < 2 or min(map(len, step_seconds)) < 2 * PARTS:
        return ()
    fastest = min(step_seconds, key=fmean)
    slow = [_slower(of, fastest) for of in step_seconds]
    if not any(slow):
        return ()
    alike = fmean([s for of, is_slow in zip(step_seconds, slow, strict=True) if not is_slow for s in of])
    return tuple(fmean(of) / alike if is_slow else 1.0 for of, is_slow in zip(step_seconds, slow, strict=True))


def _slower(own: Sequence[float], other: Sequence[float]) -> bool:
    error = math.sqrt(variance(own) / len(own) + variance(other) / len(other))
    means = [[fmean(of[len(of) * k // PARTS : len(of) * (k + 1) // PARTS]) for k in range(PARTS)] for of in (own, other)]
    lasts = all(a > STEADY * b for a, b in zip(*means, strict=True))
    return lasts and fmean(own) > SLOWER * fmean(other) and fmean(own) - fmean(other) > SURE * error


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
        # Of clocks, with their updates and all that is between, but no look; a short batch does not count.
        ends = [(row["seconds"], row["samples"]) for row in kept["metrics"][WARM_UP_CLOCKS:]]
        seconds = [max(b - a, 0.0) for (a, before), (b, samples) in pairwise(ends) if samples - before == summary["batch"]]
        found = CostModel(tuple(s * job.batch / summary["batch"] for s in seconds), samples=job.batch, source="fitted")
    comm.Barrier()
    part.Free()
    return found


def of_one_process(cost: CostModel, n_workers: int, measured: CostModel | None) -> CostModel:
    """Return what the work of all workers costs one process, which has no network: as `measured`, else all shares one after the other."""
    if measured is None:
        measured = replace(cost, compute=tuple(s * n_workers for s in cost.compute), slowness=())
    return replace(measured, jitter=cost.jitter, latency=0.0, bytes_per_second=0.0, message=0.0)


def _run(job: Job, changes: dict[str, Any], comm: CountedComm) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the job by servers and workers that wait for nobody; return its summary and what it keeps."""
    plain: dict[str, Any] = {name: getattr(Job, name) for name in OF_STRATEGIES}
    plain |= {"strategy": Job.strategy, "sync": "asp", "compress": "", "deterministic": False}
    plain |= {"epochs": 0, "seconds": 0.0, "target": "", "patience": 0, "checkpoint_every": 0, "lr_batch": 0, "slowdown": "", "tensorboard": False, "out": ""}
    kept: dict[str, Any] = {}
    summary = train(job.with_values(plain | changes, "fit"), comm, quiet=True, write=False, keep=kept)
    return summary, kept


def _cost(summary: dict[str, Any], step_seconds: list[list[float]], share: int) -> CostModel:
    """Return the costs of a run's computes, of `share` samples each, of updates and messages.

    The last batch of an epoch, which may be short, does not count, unless it is the only one: then it has all rows, and what more would take is in proportion.
    """
    total = sum(s for of in step_seconds for s in of)
    pure = max(1 - sum(summary["polls_seconds"]) / total, 0.0)  # a step's seconds hold what its rank served meanwhile, and no look
    n_steps = sum(len(of) for of in step_seconds)
    servers, workers = (_ranks(summary, role) for role in ("server", "worker"))
    apply, taken, n_taken = (sum(summary[name][rank] for rank in servers) for name in ("serve_seconds", "take_seconds", "messages"))
    # What a clock takes of a worker besides; what it and the server beside it take are messages, which a simulation counts.
    driving = sum(max(summary["comm_seconds"][rank] - summary["take_seconds"][rank], 0.0) for rank in workers)
    driving = (driving + sum(summary["serve_seconds"][rank] for rank in workers if rank not in servers)) / n_steps
    per_epoch = round(summary["clocks"] / summary["epochs"])
    pure *= share * len(step_seconds) / summary["batch"]
    seconds = [[s * pure + driving for k, s in enumerate(of) if k >= WARM_UP_CLOCKS and ((k + 1) % per_epoch or per_epoch == 1)] for of in step_seconds]
    slow = slowness(seconds)
    alike = [of for w, of in enumerate(seconds) if not slow or slow[w] == 1]
    message = taken / n_taken if n_taken else 0.0
    return CostModel(tuple(s for of in alike for s in of), apply=apply / n_steps, message=message, source="fitted", slowness=slow)


def _ranks(summary: dict[str, Any], role: str) -> list[int]:
    """List the ranks that such a role is on."""
    return [rank for rank, names in enumerate(summary["roles"]) if any(name.startswith(role) for name in names)]
