"""Put a run into numbers and words: each rank's part, the summary of all, the texts before and after."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from signal import Signals
from typing import Any

from mpidml.core.job import Job
from mpidml.core.position import Position
from mpidml.core.role import Array
from mpidml.core.sizes import size_words
from mpidml.core.target import parse_target
from mpidml.runtime import straggler
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.monitor import Monitor
from mpidml.runtime.progress import show

USELESS_R2 = 0.01


def of_rank(strategy: Any, comm: CountedComm, started: float, seconds: float, scores: list[Any]) -> dict[str, Any]:
    """Return what this rank has to say of the `seconds` of the run since `started`; `scores` are its workers' final ones."""
    driver = strategy.driver
    busy = driver.compute_seconds + driver.serve_seconds
    histogram: dict[int, int] = {}
    for worker in strategy.workers.values():
        for staleness, n in worker.tally.staleness.items():
            histogram[staleness] = histogram.get(staleness, 0) + n
    names = [*(f"server {shard.server}" for shard in strategy.spec.shards), *(f"worker {w}" for w in range(strategy.n_workers)), "coordinator"]
    waits: list[dict[str, Any]] = []
    for number, worker in strategy.workers.items():
        waits += straggler.pairs(names[number], comm.rank, worker.tally.waited, names, strategy.rank_of, started)
    return {
        "seconds": seconds,
        "waits": waits,
        "compute_seconds": busy,
        "serve_seconds": driver.serve_seconds,
        "wait_seconds": driver.wait_seconds,
        "comm_seconds": max(seconds - busy - driver.wait_seconds, 0.0),
        "bytes_sent": comm.nbytes_sent,
        "bytes_window": driver.nbytes_window,
        "messages": driver.n_messages,
        "service_delay": driver.longest_delay_seconds,
        "histogram": histogram,
        "scores": scores,
        "read_seconds": reads.read_seconds if (reads := strategy.data.reads) is not None else 0.0,
        "read_wait_seconds": reads.wait_seconds if reads is not None else 0.0,
    }


def of_job(
    job: Job,
    strategy: Any,
    comm: CountedComm,
    monitor: Monitor,
    ranks: list[dict[str, Any]],
    final: dict[str, float | None],
    values: Array | None,
    quotas: list[tuple[float, ...]],
) -> dict[str, Any]:
    """Return what summary.json holds (see README): lists are per rank; `ranks` is what `of_rank` returned on each, `final` the scores of the parameters that are saved."""
    histogram: dict[int, int] = {}
    for rank in ranks:
        for staleness, n in rank["histogram"].items():
            histogram[staleness] = histogram.get(staleness, 0) + n
    last = monitor.metrics[-1]
    tail = monitor.metrics[-max(1, min(len(monitor.metrics), strategy.sampler.clocks_per_epoch)) :]
    waits = sorted((row for r in ranks for row in r["waits"]), key=lambda row: -row["seconds"])
    assert values is not None
    usual = max(histogram, key=lambda s: histogram[s], default=0)
    # An example: each update is softened by its own staleness, without a bound by what it missed, which only the servers know.
    tuning = strategy.policy.tuning(usual if strategy.policy.bound is not None else 1)
    return {
        "strategy": job.strategy,
        "sync": job.policy(),
        "data": job.data,
        "task": "classify" if strategy.data.targets is None else "regress",
        "model": job.model,
        "optimizer": job.optimizer,
        "learning_rate": job.lr,
        "lr_policy": job.lr_policy,
        "staleness_usual": usual,
        "rate_factor": tuning.rate if job.tune else 1.0,
        "memory_factor": tuning.memory if job.tune else 1.0,
        "promise": "repeat: same layout, same bits" if job.deterministic else "agrees within rounding",
        "ranks": comm.size,
        "roles": strategy.placement.names(),
        "seed": job.seed,
        "assign": job.assign,
        "target": job.target or None,
        "target_seconds": monitor.reached["seconds"] if monitor.reached else None,
        "target_samples": monitor.reached["samples"] if monitor.reached else None,
        "epochs": monitor.n_groups / strategy.sampler.clocks_per_epoch,
        "clocks": monitor.n_groups,
        "batch": strategy.sampler.batch_size(0),
        "n_parameters": strategy.net.n_params,
        "samples": monitor.samples,
        "dropped_samples": monitor.dropped_samples,
        "seconds": last["seconds"],
        "wall_seconds": max(r["seconds"] for r in ranks),
        "rank_seconds": [r["seconds"] for r in ranks],
        "samples_per_second": monitor.samples / last["seconds"] if last["seconds"] > 0 else None,
        "final_loss": sum(r["loss"] for r in tail) / len(tail),
        "diverged_at_clock": monitor.diverged_at,
        **final,
        "bytes_sent": [r["bytes_sent"] for r in ranks],
        "bytes_window": [r["bytes_window"] for r in ranks],
        "messages": [r["messages"] for r in ranks],
        "compute_seconds": [r["compute_seconds"] for r in ranks],
        "serve_seconds": [r["serve_seconds"] for r in ranks],
        "wait_seconds": [r["wait_seconds"] for r in ranks],
        "comm_seconds": [r["comm_seconds"] for r in ranks],
        "disk_nbytes": strategy.data.disk_nbytes,
        "read_seconds": [r["read_seconds"] for r in ranks],
        "read_wait_seconds": [r["read_wait_seconds"] for r in ranks],
        "waited_for": waits,
        "most_waited_for": straggler.find(waits, max(r["seconds"] for r in ranks), strategy.n_workers),
        "longest_service_delay_seconds": [r["service_delay"] for r in ranks],
        "quotas": [dict(zip(("seconds", "worker", "quota", "load"), row, strict=True)) for row in quotas],
        "staleness_max": max(histogram, default=0),
        "staleness_bound": strategy.policy.bound,
        "staleness_histogram": {str(s): histogram[s] for s in sorted(histogram)},
        "model_sha256": hashlib.sha256(values.tobytes()).hexdigest(),
    }


def opening(job: Job, strategy: Any, data: Any, position: Position) -> str:
    """Say before the run what will be done."""
    n_servers, n_workers = len(strategy.placement.server_ranks), strategy.n_workers
    where = f"{strategy.comm.size} rank{'s' * (strategy.comm.size > 1)}"
    apart = f", {len(data.val_x)} validation and " if job.validate else " and "
    lines = [
        f"mpidml: {job.strategy} on {where}: {n_workers} worker(s), {n_servers} server(s)"
        + (" beside them" if job.servers == "colocated" else "")
        + f"; sync {job.policy()}, {'in place' if strategy.in_place else 'by copy'}",
        f"data {data.name}: {len(data.x)} training{apart}{len(data.test_x)} test rows x {data.x.shape[1]} features, "
        + (f"{data.n_outputs} classes" if data.targets is None else f"{data.n_outputs} target(s)"),
        *(f"data: {note}" for note in data.notes),
        f"model {job.model}: {strategy.net.n_params:,} parameters; {_length(strategy)} of {strategy.sampler.batch_size(0)} samples{_parts(job)}; "
        f"optimizer {job.optimizer}, learning rate {job.lr:g}",
    ]
    if strategy.rates is not None:
        lines.append(f"learning rate {strategy.rates.words(job.lr, 0 if strategy.endless else strategy.n_clocks)}")
    if position.turns:
        lines.append(f"resumed: {_done(strategy, position)} are done")
    bound = strategy.policy.bound
    if job.tune and bound != 0:
        typical = strategy.policy.tuning(1)
        lines.append(
            f"stale updates are softened: at staleness 1 the rate is multiplied by {typical.rate:g} and momentum's memory divided by {typical.memory:g} (--no-tune: off)"
        )
    if job.deterministic:
        lines.append("deterministic: repeat mode - the same layout gives the same bits")
    return "\n".join(lines)


def _parts(job: Job) -> str:
    return f", each worker's share in {job.accumulate} parts" if job.accumulate > 1 else ""


def _length(strategy: Any) -> str:
    """Say when the run ends."""
    job = strategy.job
    limits = [] if strategy.endless else [f"{strategy.n_clocks} clocks"]
    limits += [f"{job.seconds:g} s"] if job.seconds else []
    limits += [str(strategy.target)] if strategy.target is not None else []
    limits += [f"{job.patience} epochs without a lower validation loss"] if job.patience else []
    return " or ".join(limits)


def paused(signal: int, strategy: Any, position: Position, folder: Path) -> str:
    """Say that a signal has ended the run, and how to go on."""
    return f"stopped by {Signals(signal).name}: {_done(strategy, position)} are done and saved; go on with: python -m mpidml train --resume {folder}"


def _done(strategy: Any, position: Position) -> str:
    clocks = sum(position.turns) // strategy.n_workers
    return f"{clocks:,} clocks ({clocks / strategy.sampler.clocks_per_epoch:.2f} epochs)"


def closing(summary: dict[str, Any], folder: Path | None) -> str:
    """Say after the run what came of it."""
    quality = f"test accuracy {summary['test_accuracy']:.2%}, " if summary.get("test_accuracy") is not None else ""
    if summary.get("test_rmse") is not None:
        explained = "" if summary["test_r2"] is None else f", R2 {summary['test_r2']:.4f}"
        useless = summary["test_r2"] is not None and summary["test_r2"] < USELESS_R2
        explained += f", no better than the mean: lower --lr ({summary['learning_rate']:g})" if useless else ""
        quality = f"test RMSE {summary['test_rmse']:.4g}{explained}, "
    busy, wait, moved = (sum(summary[k]) for k in ("compute_seconds", "wait_seconds", "comm_seconds"))
    total = max(busy + wait + moved, 1e-12)
    rate = summary["samples_per_second"] or 0.0
    if summary["diverged_at_clock"] is not None:
        quality = (
            f"DIVERGED: the loss is not a number from clock {summary['diverged_at_clock']} on; lower --lr ({summary['learning_rate']:g}). " + quality
        )
    if summary["target"]:
        found = summary["target_seconds"]
        when = "NOT reached" if found is None else f"reached at {found:.2f} s, after {summary['target_samples']:,} samples"
        quality = f"{parse_target(summary['target'], 'val' if 'val_loss' in summary else 'test')} was {when}. " + quality
    if summary.get("best_epoch") is not None:
        quality = f"saved: the parameters after epoch {summary['best_epoch']:g}, validation loss {summary['best_val_loss']:.4g}. " + quality
    dropped = f"; {summary['dropped_samples']:,} samples more were dropped" if summary["dropped_samples"] else ""
    return (
        f"done: {quality}training loss {summary['final_loss']:.4f} after {summary['samples']:,} samples in {summary['seconds']:.2f} s ({rate:,.0f} samples/s){dropped}\n"
        f"ranks were busy {busy / total:.0%}, waiting {wait / total:.0%}, communicating {moved / total:.0%} of the time; staleness at most {summary['staleness_max']}"
        + _read(summary)
        + (f"\n{straggler.sentence(most, summary['staleness_bound'], summary['what_if'])}" if (most := summary["most_waited_for"]) else "")
        + (f"\n{other}" if (other := summary["what_if_sentence"]) else "")
        + (f"\nwritten: {folder}/ (report.png, summary.json, metrics.jsonl, model.safetensors, config.toml)" if folder is not None else "")
    )


def _read(summary: dict[str, Any]) -> str:
    """Say what rows on the disk have cost."""
    if not summary["disk_nbytes"]:
        return ""
    took, waited = sum(summary["read_seconds"]), sum(summary["read_wait_seconds"])
    return f"\nreading {size_words(summary['disk_nbytes'])} of rows on the disk took the ranks {took:.2f} s, of which they waited {waited:.2f} s"


def say(text: str) -> None:
    """Write lines in one piece, so that those of several processes do not tear each other; a reader who has left does not end the run."""
    show(sys.stdout, text + "\n")
