"""Put a simulation into numbers and words: the keys of a run's summary.json and metrics.jsonl, and one line."""

from __future__ import annotations

from typing import Any

from mpidml.core.clocks import NO_CLOCK
from mpidml.core.job import Job
from mpidml.core.target import parse_target
from mpidml.sim.parameter_server import Plan, Simulated

MOST_MESSAGES = 100_000
"""A second, of one rank: more than it can take, at 10 us and up for each."""


def of_job(job: Job, plan: Plan, found: Simulated, wall_seconds: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the summary and the metrics of a simulation, with the keys of a run; None for what is not known where sizes alone move."""
    n, seconds = plan.n_workers, found.seconds
    share = job.batch / n
    names = [[f"server {w}", f"worker {w}"] if plan.colocated else [f"worker {w}"] for w in range(n)]
    metrics = [
        {"clock": done // n - 1, "epoch": None, "seconds": at, "samples": round(done * share), "loss": None, "staleness": stale}
        for at, done, stale in found.rows
    ]
    samples = round(found.n_done * share)
    busy = found.busy_seconds
    summary: dict[str, Any] = {
        "strategy": job.strategy,
        "sync": job.policy(),
        "simulated": True,
        "ranks": n if plan.colocated else n + plan.n_shards,
        "roles": names if plan.colocated else [*([f"server {k}"] for k in range(plan.n_shards)), *names],
        "workers": n,
        "servers": plan.n_shards,
        "seed": job.seed,
        "assign": job.assign,
        "optimizer": job.optimizer,
        "learning_rate": job.rate,
        "lr_policy": job.lr_policy,
        "data": job.data,
        "model": job.model,
        "batch": job.batch,
        "clocks": found.n_done // n,
        "epochs": None,
        "samples": samples,
        "dropped_samples": round(found.n_dropped * share),
        "seconds": seconds,
        "wall_seconds": wall_seconds,
        "samples_per_second": samples / seconds if samples and seconds > 0 else None,
        "clocks_per_second": found.n_done / n / seconds if seconds > 0 else None,
        "final_loss": None,
        "test_loss": None,
        "test_accuracy": None,
        "bytes_sent": [found.nbytes],
        "bytes_window": [],
        "messages": [found.n_messages],
        # Of the ranks that compute, the last ones of `roles`: what servers apart do is not followed one by one.
        "compute_seconds": busy,
        "wait_seconds": [max(seconds - own, 0.0) for own in busy],  # at the end for the last one, too
        "comm_seconds": [0.0] * n,
        "waited_for": [],
        "most_waited_for": None,
        "quotas": [dict(zip(("seconds", "worker", "quota", "load"), row, strict=True)) for row in found.quotas.rows],
        "quotas_set": found.quotas.n,
        "staleness_max": max(found.staleness, default=0),
        "staleness_bound": plan.policy.bound,
        "staleness_histogram": {str(s): found.staleness[s] for s in sorted(found.staleness)},
        "model_sha256": None,
    }
    return summary, metrics


def sentence(name: str, summary: dict[str, Any]) -> str:
    """Say what came of a simulation in one line."""
    if not summary["samples"]:
        return f"{name}: {NO_CLOCK}{_of_target(summary)}"
    waiting = sum(summary["wait_seconds"]) / max(sum(summary["wait_seconds"]) + sum(summary["compute_seconds"]), 1e-12)
    mean = sum(int(s) * k for s, k in summary["staleness_histogram"].items()) / max(sum(summary["staleness_histogram"].values()), 1)
    text = f"{name}: {summary['workers']:,} worker(s) do {summary['clocks']:,} clocks each in {summary['seconds']:.4g} s"
    text += f" ({summary['samples_per_second'] or 0:,.0f} samples/s), waiting {waiting:.0%}, staleness {mean:.2f}; loss "
    text += "-" if summary["final_loss"] is None else f"{summary['final_loss']:.4f}"
    text += "" if summary["test_accuracy"] is None else f", test accuracy {summary['test_accuracy']:.2%}"
    if len(summary["quotas"]) < summary["quotas_set"]:
        text += f"; summary.json has {len(summary['quotas']):,} of the {summary['quotas_set']:,} quotas that were set, evenly over the run"
    return text + f"{_of_target(summary)}; {summary['messages'][0]:,} messages, simulated in {summary['wall_seconds']:.1f} s"


def too_many(plan: Plan, found: Simulated) -> str:
    """Say in one line where a server takes more messages than it could though they cost nothing here; "" elsewhere."""
    n_ranks = plan.n_workers if plan.colocated else plan.n_shards
    if not n_ranks or plan.cost.message or found.n_messages <= MOST_MESSAGES * n_ranks * found.seconds:
        return ""
    rate = f"{found.n_messages / n_ranks / found.seconds:,.0f} a second on each of the servers' ranks" if found.seconds else "all in no time"
    return f"messages cost nothing here: {found.n_messages:,} of them, {rate}, which is more than a rank takes; real ones will be slower"


def _of_target(summary: dict[str, Any]) -> str:
    """Say whether a target was reached; "" where there was none."""
    if not summary.get("target"):
        return ""
    at, target = summary["target_seconds"], parse_target(summary["target"], "val" if "val_loss" in summary else "test")
    return f"; {target} was " + ("NOT reached" if at is None else f"reached at {at:.4g} s, after {summary['target_samples']:,} samples")
