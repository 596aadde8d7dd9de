"""Train on virtual clocks: the arithmetic is real, its time is that of a cost model. Every rank of the job is simulated in this process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from mpidml_kernels import backend

from mpidml.core import plugins
from mpidml.core.job import Job
from mpidml.nn.network import Network
from mpidml.runtime.dataset import Dataset
from mpidml.runtime.monitor import COLUMNS, Monitor
from mpidml.runtime.net import build_net
from mpidml.runtime.progress import Progress
from mpidml.runtime.scoring import n_of_heads
from mpidml.runtime.summary import by_head
from mpidml.sim.memory import learning_nbytes
from mpidml.sim.parameter_server import Plan, Simulated, drive
from mpidml.sim.ranks import VirtualRanks

EVALUATION_SECONDS = COLUMNS.index("evaluation_seconds")


def ending(job: Job, n_clocks: int) -> Job:
    """Return `job` with the end that its simulation has: after so many clocks; more than 2^30 are no end."""
    return job.with_values({"steps": n_clocks if n_clocks <= 1 << 30 else 0, "epochs": 0}, "simulate")


def with_memory(plan: Plan, job: Job, net: Network) -> Plan:
    """Return `plan` with what the arithmetic of `net` will keep, by an estimate."""
    strategy = _strategy(job, plan)
    nbytes, how = net.n_params * net.dtype.itemsize, (strategy.copies, strategy.in_place, strategy.repeat, job.reads != Job.reads, job.backend != "numpy")
    return replace(plan, kept=learning_nbytes(nbytes, plan.n_workers, plan.n_shards, plan.policy, *how))


def _strategy(job: Job, plan: Plan) -> Any:
    ranks = plan.n_workers if plan.colocated else plan.n_workers + plan.n_shards
    return plugins.load("mpidml.strategies", job.strategy)(ending(job, plan.n_clocks), VirtualRanks(ranks))


def train(job: Job, plan: Plan, data: Dataset, progress: Progress | None = None) -> tuple[Simulated, list[dict[str, Any]], dict[str, Any]]:
    """Train as `job` says with the ranks of `plan`; return what was counted, the metrics over virtual seconds, and the quality reached."""
    job = ending(job, plan.n_clocks).with_values({"early_push": "off", "slowdown": "", "out": ""}, "simulate")
    strategy = _strategy(job, plan)
    net = build_net(job, data, backend(job.backend))
    strategy.make(net, data, None, (lambda now: now >= plan.seconds) if plan.seconds else None)
    roles = strategy.roles()
    n_servers = len(strategy.shards)
    sampler = strategy.sampler
    limit = plan.seconds if strategy.endless else 0.0
    of, n_looked_at = job.looks_at, len(data.rows(job.looks_at)[0])
    epoch, judge, target, write = sampler.clocks_per_epoch, data.quality, strategy.target, lambda row: None
    monitor = Monitor(
        plan.n_workers, strategy.n_clocks, epoch, progress, write, judge, n_looked_at, target, limit, of, by_clock=strategy.in_step, n_of_heads=n_of_heads(net)
    )
    reports: list[tuple[float, ...]] = []

    def note(now: float, role: int, name: str, value: tuple[float, ...]) -> None:
        if name == "clock":
            row = [float(role - n_servers), now, *value]
            row[EVALUATION_SECONDS] = 0.0  # scoring takes no virtual time
            reports.append(tuple(row))
        elif name == "left":
            reports.append((float(role - n_servers), now, -1.0, *(0.0,) * (monitor.width - 3)))
        if len(reports) >= plan.n_workers:  # one of each, in the mean
            monitor.take(reports)
            reports.clear()
            if monitor.reached is not None and strategy.coordinator is not None:
                strategy.coordinator.stop()

    with np.errstate(all="ignore"):  # a loss that is no longer a number is told once, at the end
        found = drive(plan, [roles[number] for number in range(len(roles))], n_servers, note)
    monitor.take(reports)
    final = data.judged([worker.result for worker in strategy.workers.values()])
    monitor.end(final)
    for worker in strategy.workers.values():
        for role, waits in worker.tally.waited.items():
            found.waited.setdefault(0 if role < n_servers else role - n_servers + 1, type(waits)()).merge(waits)
    tail = monitor.metrics[-max(1, min(len(monitor.metrics), sampler.clocks_per_epoch)) :]
    quality = {
        "samples": monitor.samples,
        "dropped_samples": monitor.dropped_samples,
        "epochs": monitor.n_groups / sampler.clocks_per_epoch,
        "final_loss": sum(row["loss"] for row in tail) / len(tail) if tail else None,
        "diverged_at_clock": monitor.diverged_at,
        **by_head(strategy, final),
        "target": job.target or None,
        "target_seconds": monitor.reached["seconds"] if monitor.reached else None,
        "target_samples": monitor.reached["samples"] if monitor.reached else None,
        "n_parameters": net.n_params,
    }
    return found, monitor.metrics, quality
