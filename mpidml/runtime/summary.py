"""Put a run into numbers and words: each rank's part, the summary of all, the texts before and after."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from signal import SIGUSR1, Signals
from typing import Any

from mpidml.core.clocks import NO_CLOCK
from mpidml.core.job import Job
from mpidml.core.position import Position
from mpidml.core.role import Array
from mpidml.core.sizes import size_words
from mpidml.core.target import parse_target
from mpidml.runtime import device, stage_report, straggler
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.evaluation_text import told
from mpidml.runtime.monitor import Monitor
from mpidml.runtime.progress import show

USELESS_R2 = 0.01
AGREES = "agrees within rounding"
"""What every strategy promises."""
WORTH_TELLING_SECONDS = 0.1


def of_rank(strategy: Any, sent: tuple[int, int], started: float, seconds: float, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what this rank has to say of the `seconds` of a run that began at `started`, and the bytes and the messages that MPI was given, `sent`.

    `before`: what it said where the run was saved, of that part.
    """
    driver, rank = strategy.driver, strategy.comm.rank
    busy = driver.compute_seconds + driver.serve_seconds
    histogram: dict[int, int] = {}
    for worker in strategy.workers.values():
        for staleness, n in worker.tally.staleness.items():
            histogram[staleness] = histogram.get(staleness, 0) + n
    names = [*(f"server {shard.server}" for _, shard in strategy.shards), *(f"worker {w}" for w in range(strategy.n_workers)), "coordinator"]
    waits: list[dict[str, Any]] = []
    for number, worker in strategy.workers.items():
        waits += straggler.pairs(names[number], rank, worker.tally.waited, names, strategy.rank_of, started)
    found = {
        "seconds": seconds,
        "waits": waits,
        "compute_seconds": busy,
        "serve_seconds": driver.serve_seconds,
        "take_seconds": driver.take_seconds,
        "polls_seconds": driver.polls_seconds,
        "wait_seconds": driver.wait_seconds,
        "comm_seconds": max(seconds - busy - driver.wait_seconds, 0.0),
        "bytes_sent": sent[0],
        "sends": sent[1],
        "bytes_window": driver.nbytes_window,
        "messages": driver.n_messages,
        "service_delay": driver.longest_delay_seconds,
        "drain_seconds": strategy.drain_seconds,
        "histogram": histogram,
        "read_seconds": reads.read_seconds if (reads := strategy.data.reads) is not None else 0.0,
        "read_wait_seconds": reads.wait_seconds if reads is not None else 0.0,
    }
    for name, value in before.items():
        if name == "histogram":
            for staleness, n in value.items():
                histogram[int(staleness)] = histogram.get(int(staleness), 0) + n
        elif name != "drain_seconds":
            found[name] = max(found[name], value) if name == "service_delay" else found[name] + value
    return found


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
    last = monitor.metrics[-1] if monitor.metrics else {"clock": -1, "seconds": max(r["seconds"] for r in ranks)}  # the time was up before a clock was
    # The last epoch's rows, and of how many clocks each is the mean.
    rows, first = pairwise([{"clock": -1}, *monitor.metrics]), last["clock"] - strategy.sampler.clocks_per_epoch
    tail = [(row["loss"], row["clock"] - before["clock"]) for before, row in rows if row["clock"] > first]
    waits = sorted((row for r in ranks for row in r["waits"]), key=lambda row: -row["seconds"])
    assert values is not None
    usual = max(histogram, key=lambda s: histogram[s], default=0)
    alone = strategy.n_workers == 1 and strategy.in_place
    # An example: each update is softened by its own staleness, without a bound by what it missed, which only the servers know.
    tuning = strategy.policy.tuning(usual if strategy.policy.bound is not None or alone else 1)
    return {
        "strategy": job.strategy,
        "sync": job.policy(),
        "data": job.data,
        "task": strategy.data.task,
        "model": job.model,
        "device": strategy.net.device.said(),
        "optimizer": job.optimizer,
        "learning_rate": job.rate,
        "lr_policy": job.lr_policy,
        "staleness_usual": usual,
        "rate_factor": tuning.rate if job.tune else 1.0,
        "memory_factor": tuning.memory if job.tune else 1.0,
        "promise": strategy.promise,
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
        "sample_shares": strategy.sampler.shares.parts if strategy.sampler.shares is not None else None,
        "n_parameters": strategy.net.n_params,
        "samples": monitor.samples,
        "dropped_samples": monitor.dropped_samples,
        "seconds": last["seconds"],
        "wall_seconds": max(r["seconds"] for r in ranks),
        "rank_seconds": [r["seconds"] for r in ranks],
        "samples_per_second": monitor.samples / last["seconds"] if monitor.samples and last["seconds"] > 0 else None,
        "final_loss": sum(loss * n for loss, n in tail) / sum(n for _, n in tail) if tail else None,
        "diverged_at_clock": monitor.diverged_at,
        **by_head(strategy, final),
        "bytes_sent": [r["bytes_sent"] for r in ranks],
        "bytes_window": [r["bytes_window"] for r in ranks],
        "sends": [r["sends"] for r in ranks],
        "messages": [r["messages"] for r in ranks],
        "compute_seconds": [r["compute_seconds"] for r in ranks],
        "serve_seconds": [r["serve_seconds"] for r in ranks],
        "take_seconds": [r["take_seconds"] for r in ranks],
        "polls_seconds": [r["polls_seconds"] for r in ranks],
        "wait_seconds": [r["wait_seconds"] for r in ranks],
        "comm_seconds": [r["comm_seconds"] for r in ranks],
        "evaluation_seconds": monitor.evaluation_seconds,
        "disk_nbytes": strategy.data.disk_nbytes,
        "read_seconds": [r["read_seconds"] for r in ranks],
        "read_wait_seconds": [r["read_wait_seconds"] for r in ranks],
        "waited_for": waits,
        "most_waited_for": straggler.find(waits, max(r["seconds"] for r in ranks), strategy.n_workers),
        "longest_service_delay_seconds": [r["service_delay"] for r in ranks],
        "drain_seconds": max(r["drain_seconds"] for r in ranks),
        "quotas": [dict(zip(("seconds", "worker", "quota", "load"), row, strict=True)) for row in quotas],
        "staleness_max": max(histogram, default=0),
        "staleness_bound": strategy.policy.bound,
        "budget": job.budget,
        "staleness_histogram": {str(s): histogram[s] for s in sorted(histogram)},
        "model_sha256": hashlib.sha256(values.tobytes()).hexdigest(),
    }


def by_head(strategy: Any, final: dict[str, float | None]) -> dict[str, Any]:
    """Return the scores of the parameters that are saved as summary.json holds them: those of several heads below `heads`, by their names."""
    found: dict[str, dict[str, Any]] = {}
    for head, of in zip(strategy.net.heads, strategy.data.heads, strict=False):
        measures = {name.partition(".")[0]: value for name, value in final.items() if name.partition(".")[2] == head.name}
        found[head.name] = {"task": "classify" if of.is_labels else "regress", "weight": head.weight, "columns": of.names, **measures}
    return {name: value for name, value in final.items() if "." not in name} | ({"heads": found} if found else {})


def opening(job: Job, strategy: Any, data: Any, position: Position) -> str:
    """Say before the run what will be done."""
    where = f"{strategy.comm.size} rank{'s' * (strategy.comm.size > 1)}"
    apart = f", {len(data.val_x)} validation and " if job.validate else " and "
    lines = [
        f"mpidml: {job.strategy} on {where}: {strategy.words()}",
        *device.told(strategy.net.device),
        f"data {data.name}: {len(data.x)} training{apart}{len(data.test_x)} test rows x {data.x.shape[1]} features, "
        + _learnt(data),
        *(f"data: {note}" for note in data.notes),
        *(_sparse(job, strategy, data) if data.is_sparse else ()),
        f"model {job.model}: {strategy.net.n_params:,} parameters; {_length(strategy)} of {strategy.sampler.batch_size(0)} samples{_parts(job)}; "
        f"optimizer {job.optimizer}, learning rate {job.rate:g}",
    ]
    if strategy.rates is not None:
        lines.append(f"learning rate {strategy.rates.words(job.rate, 0 if strategy.endless else strategy.n_clocks)}")
    if position.turns:
        drained = f"; --schedule {job.schedule} begins there with a drained pipeline, as only a run that saves at the same clocks does"
        lines.append(f"resumed: {_done(strategy, position)} are done" + drained * bool(getattr(strategy, "every", 0) and strategy.programs.oldest))
    bound = strategy.policy.bound
    if job.tune and bound != 0 and not (strategy.n_workers == 1 and strategy.in_place):
        typical = strategy.policy.tuning(1)
        lines.append(
            f"stale updates are softened: at staleness 1 the rate is multiplied by {typical.rate:g} and momentum's memory divided by {typical.memory:g} (--no-tune: off)"
        )
    if job.deterministic:
        lines.append(f"deterministic: {strategy.promise}")
    return "\n".join(lines)


def _learnt(data: Any) -> str:
    """Say what there is to learn."""
    if data.heads:
        return "; ".join(f"{of.name}: {of.n_outputs} {'classes' if of.is_labels else 'target(s)'}" for of in data.heads)
    return f"{data.n_outputs} classes" if data.targets is None else f"{data.n_outputs} target(s)"


def _sparse(job: Job, strategy: Any, data: Any) -> list[str]:
    """Say what sparse rows store, and which links of the optimizer rest with a feature that does not occur."""
    chain = strategy.server_chain.links
    lazy = [type(link).__name__.lower() for link in (*(strategy.before.links if strategy.before else ()), *chain) if not link.rests]
    text = f"data: rows are sparse, {data.x.n_stored / len(data.x):.1f} stored values each; a clock reads and writes the first weights of their features alone"
    return [text + (f", and of these alone {', '.join(lazy)} has a step" if lazy else "")]


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
    """Say that a signal has ended the run, and how to go on; a job that another one than SIGUSR1 ends, as scancel does, does not come back by itself."""
    stays = strategy.job.requeue and signal != SIGUSR1
    alone = ", and the job does not go back into its queue, which SIGUSR1 alone asks for" * stays
    return f"stopped by {Signals(signal).name}: {_done(strategy, position)} are done and saved{alone}; go on with: python -m mpidml train --resume {folder}"


def interrupted(clock: int | None, folder: Path) -> str:
    """Say from where a run can go on that was ended at once."""
    if clock is None:
        return "interrupted: nothing is saved yet"
    return f"interrupted: go on from clock {clock:,}, the last that is saved, with: python -m mpidml train --resume {folder}"


def _done(strategy: Any, position: Position) -> str:
    clocks = sum(position.turns) // strategy.n_workers
    return f"{clocks:,} clocks ({clocks / strategy.sampler.clocks_per_epoch:.2f} epochs)"


def closing(summary: dict[str, Any], folder: Path | None, drawn: bool) -> str:
    """Say after the run what came of it."""
    quality = f"test accuracy {summary['test_accuracy']:.2%}, " if summary.get("test_accuracy") is not None else ""
    if "heads" in summary:
        quality = f"test loss {summary['test_loss']:.4g} ({told(summary['heads'])}), " if summary.get("test_loss") is not None else ""
    elif summary.get("test_rmse") is not None:
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
    loss = f"training loss {summary['final_loss']:.4f} after" if summary["final_loss"] is not None else f"{NO_CLOCK}:"
    drained = summary["drain_seconds"]
    late = f"\nthe last updates took {drained:.2f} s more to go out within the budget; they count" if drained >= WORTH_TELLING_SECONDS else ""
    return (
        f"done: {quality}{loss} {summary['samples']:,} samples in {summary['seconds']:.2f} s ({rate:,.0f} samples/s){dropped}\n"
        f"ranks were busy {busy / total:.0%}, waiting {wait / total:.0%}, communicating {moved / total:.0%} of the time; staleness at most {summary['staleness_max']}"
        + stage_report.closing(summary)
        + late
        + (f"\nreplicas were {apart:.3g} (root mean square) from their mean, when last measured" if (apart := summary.get("consensus_distance")) is not None else "")
        + _read(summary)
        + (f"\n{straggler.sentence(most, None if summary['budget'] else summary['staleness_bound'], summary['what_if'])}" if (most := summary["most_waited_for"]) else "")
        + (f"\n{other}" if (other := summary["what_if_sentence"]) else "")
        + (f"\nwritten: {folder}/ ({'report.png, ' * drawn}summary.json, metrics.jsonl, model.safetensors, config.toml)" if folder is not None else "")
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
