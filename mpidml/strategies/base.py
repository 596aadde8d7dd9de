"""Run a job from its description to its folder: the one loop around every strategy.

    check -> load data -> build the network -> strategy.prepare -> drive -> score -> gather -> write

Everything that can be wrong with a job's input is found before `drive`, and nothing is written before it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from datetime import datetime
from typing import Any

import numpy as np
from mpidml_kernels import backend

from mpidml.core import plugins
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.core.trace import Trace, to_chrome
from mpidml.nn.models import build
from mpidml.runtime import abort
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm, world
from mpidml.runtime.dataset import load
from mpidml.runtime.monitor import COLUMNS, Monitor
from mpidml.runtime.outputs import RunFolder, default_out, to_toml
from mpidml.runtime.progress import Progress, launcher_terminal
from mpidml.runtime.telemetry import Telemetry

VALUES_TAG = 9


def train(job: Job, comm: CountedComm | None = None, quiet: bool = False, write: bool = True, keep: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train as `job` says and return the summary on every rank (Collective on comm; default: all ranks).

    Rank 0 shows progress unless `quiet`, and writes the run folder if `write`; `keep` is given the trained
    `network` and its `values`. UserError for bad input, before any work. Without `comm`, on several ranks, an uncaught
    exception or a signal on one rank ends them all from now on.
    """
    own = comm is None
    comm = CountedComm() if comm is None else comm
    if own and comm.size > 1:
        abort.install(world())
    try:
        return _train(job, comm, quiet, write, keep)
    finally:
        if own and sys.exc_info()[0] is None:
            comm.free()


def _train(job: Job, comm: CountedComm, quiet: bool, write: bool, keep: dict[str, Any] | None) -> dict[str, Any]:
    leads = comm.rank == 0
    job = agree(comm, job.checked)
    strategy_class = agree(comm, lambda: plugins.load("mpidml.strategies", job.strategy))
    folder = agree(comm, lambda: RunFolder.prepare(job.out or default_out(datetime.now())) if leads and write else None)
    data = load(job, comm)
    arithmetic = _compiled(job.backend, comm)
    # The default widths are those of an mlp; `build` refuses widths that a user gives to a model without hidden layers.
    hidden = () if job.model == "softmax" and job.hidden == Job.hidden else job.hidden
    net = agree(
        comm, lambda: build(job.model, data.x.shape[1], data.n_classes, hidden, job.activation, job.dropout, job.loss, job.dtype, arithmetic)
    )
    strategy = agree(comm, lambda: strategy_class(job, comm, net, data))
    telemetry = Telemetry(comm, len(COLUMNS))
    trace = Trace() if job.trace else None
    if folder is not None:
        folder.create()
        folder.write_text("config.toml", to_toml(job.mapping()))
    monitor = _monitor(strategy, folder, quiet) if leads else None
    started = 0.0

    def record(role: int, now: float, name: str, value: tuple[float, ...]) -> None:
        if name == "clock":
            telemetry.add((role - len(strategy.spec.shards), now - started, *value))
        elif trace is not None:
            trace.add("pull", value[1], value[2], int(value[0]))

    def look(now: float) -> None:
        if monitor is not None:
            monitor.take(telemetry.receive())
        else:
            telemetry.send()

    strategy.prepare(record, look, trace)
    if leads and not quiet:
        _say(_opening(job, strategy, data))
    comm.Barrier()
    started = time.perf_counter()
    strategy.driver.run()
    seconds = time.perf_counter() - started
    rows = telemetry.drain()
    scores = [w.result for w in strategy.workers.values()]
    ranks = comm.gather(_rank_summary(strategy, comm, seconds, scores))
    values = _bring(strategy, comm)
    traces = comm.gather(_since(trace.columns(), started)) if trace is not None else None
    summary: dict[str, Any] | None = None
    if monitor is not None and ranks is not None:
        monitor.take(rows)
        test_rows = sum(n for r in ranks for _, _, n in r["scores"])
        test_loss = sum(s for r in ranks for s, _, _ in r["scores"]) / test_rows if test_rows else None
        accuracy = sum(c for r in ranks for _, c, _ in r["scores"]) / test_rows if test_rows else None
        monitor.end(test_loss, accuracy)
        summary = _summary(job, strategy, comm, monitor, ranks, test_loss, accuracy, values)
        if folder is not None:
            _write(folder, strategy, data, summary, monitor, values, traces)
        if not quiet:
            _say(_closing(summary, folder))
    if keep is not None:
        keep["network"] = net
        keep["values"] = comm.bcast(values.copy() if values is not None and leads else None)
    strategy.free()
    result: dict[str, Any] = comm.bcast(summary)
    return result


def _compiled(name: str, comm: CountedComm) -> Any:
    """Load the arithmetic; the first rank of each host compiles it while the others wait for its cache (Collective on comm)."""
    if comm.host.rank == 0:
        arithmetic = backend(name)
        comm.host.Barrier()
        return arithmetic
    comm.host.Barrier()
    return backend(name)


def _monitor(strategy: Any, folder: RunFolder | None, quiet: bool) -> Monitor:
    samples = (
        sum(strategy.sampler.batch_size(c) for c in range(strategy.n_clocks)) if strategy.n_clocks < 10**6 else strategy.n_clocks * strategy.job.batch
    )
    progress = None if quiet else Progress(samples, sys.stdout, launcher_terminal())

    def staleness() -> float:
        """Mean staleness of the reads of this rank's workers, or of the policy's bound where it has none."""
        seen = [w.client.staleness for w in strategy.workers.values()]
        total = sum(sum(c.values()) for c in seen)
        return sum(s * n for c in seen for s, n in c.items()) / total if total else float(strategy.policy.bound or 0)

    return Monitor(
        strategy.n_workers,
        strategy.n_clocks,
        strategy.sampler.clocks_per_epoch,
        progress,
        folder.append_metrics if folder is not None else lambda row: None,
        staleness,
    )


def _rank_summary(strategy: Any, comm: CountedComm, seconds: float, scores: list[Any]) -> dict[str, Any]:
    driver = strategy.driver
    busy = driver.compute_seconds + driver.serve_seconds
    histogram: dict[int, int] = {}
    for worker in strategy.workers.values():
        for staleness, n in worker.client.staleness.items():
            histogram[staleness] = histogram.get(staleness, 0) + n
    return {
        "seconds": seconds,
        "compute_seconds": busy,
        "wait_seconds": driver.wait_seconds,
        "comm_seconds": max(seconds - busy - driver.wait_seconds, 0.0),
        "bytes_sent": comm.nbytes_sent,
        "bytes_window": driver.nbytes_window,
        "messages": driver.n_messages,
        "service_delay": driver.longest_delay_seconds,
        "histogram": histogram,
        "scores": scores,
    }


def _since(columns: dict[str, Array], started: float) -> dict[str, Array]:
    """Count a rank's events from the barrier that began the run: clocks of different hosts share no other origin."""
    return {**columns, "start": columns["start"] - started}


def _bring(strategy: Any, comm: CountedComm) -> Array | None:
    """Bring the final parameters to rank 0 (Collective on comm)."""
    values: Array | None = strategy.final_values()
    source = strategy.placement.worker_ranks[0]
    if source != 0 and strategy.table is None:
        if comm.rank == source:
            comm.Isend(values, 0, VALUES_TAG).Wait()
        elif comm.rank == 0:
            values = np.empty(strategy.net.n_params, strategy.net.dtype)
            comm.Irecv(values, source, VALUES_TAG).Wait()
    return values


def _summary(
    job: Job,
    strategy: Any,
    comm: CountedComm,
    monitor: Monitor,
    ranks: list[dict[str, Any]],
    test_loss: float | None,
    accuracy: float | None,
    values: Array | None,
) -> dict[str, Any]:
    histogram: dict[int, int] = {}
    for rank in ranks:
        for staleness, n in rank["histogram"].items():
            histogram[staleness] = histogram.get(staleness, 0) + n
    last = monitor.metrics[-1]
    tail = monitor.metrics[-max(1, min(len(monitor.metrics), strategy.sampler.clocks_per_epoch)) :]
    assert values is not None
    tuning = strategy.policy.tuning(max(histogram, key=lambda s: histogram[s]) if histogram else 0)
    return {
        "strategy": job.strategy,
        "sync": job.policy(),
        "data": job.data,
        "model": job.model,
        "optimizer": job.optimizer,
        "learning_rate": job.lr,
        "rate_factor": tuning.rate if job.tune else 1.0,
        "memory_factor": tuning.memory if job.tune else 1.0,
        "promise": "repeat: same layout, same bits" if job.deterministic else "agrees within rounding",
        "ranks": comm.size,
        "roles": strategy.placement.names(),
        "seed": job.seed,
        "epochs": monitor.epochs,
        "clocks": strategy.n_clocks,
        "batch": job.batch,
        "n_parameters": strategy.net.n_params,
        "samples": monitor.samples,
        "seconds": last["seconds"],
        "wall_seconds": max(r["seconds"] for r in ranks),
        "samples_per_second": monitor.samples / last["seconds"] if last["seconds"] > 0 else None,
        "final_loss": sum(r["loss"] for r in tail) / len(tail),
        "test_loss": test_loss,
        "test_accuracy": accuracy,
        "bytes_sent": [r["bytes_sent"] for r in ranks],
        "bytes_window": [r["bytes_window"] for r in ranks],
        "messages": [r["messages"] for r in ranks],
        "compute_seconds": [r["compute_seconds"] for r in ranks],
        "wait_seconds": [r["wait_seconds"] for r in ranks],
        "comm_seconds": [r["comm_seconds"] for r in ranks],
        "longest_service_delay_seconds": [r["service_delay"] for r in ranks],
        "staleness_max": max(histogram, default=0),
        "staleness_bound": strategy.policy.bound,
        "staleness_histogram": {str(s): histogram[s] for s in sorted(histogram)},
        "model_sha256": hashlib.sha256(values.tobytes()).hexdigest(),
    }


def _write(folder: RunFolder, strategy: Any, data: Any, summary: dict[str, Any], monitor: Monitor, values: Array | None, traces: Any) -> None:
    from mpidml.runtime.report import draw

    assert values is not None
    tensors = {**strategy.net.params.views(values), **{f"scaler.{k}": v for k, v in data.scaler.state().items()}}
    folder.write_model(tensors, {"model_sha256": summary["model_sha256"]})
    if traces is not None:
        folder.write_json(
            "trace.json", to_chrome([(r, names, columns) for r, (names, columns) in enumerate(zip(summary["roles"], traces, strict=True))])
        )
    folder.close()
    draw(folder.path / "report.png", summary, monitor.metrics)
    folder.write_json("summary.json", summary)


def _opening(job: Job, strategy: Any, data: Any) -> str:
    n_servers, n_workers = len(strategy.placement.server_ranks), strategy.n_workers
    where = f"{strategy.comm.size} rank{'s' * (strategy.comm.size > 1)}"
    lines = [
        f"mpidml: {job.strategy} on {where}: {n_workers} worker(s), {n_servers} server(s)"
        + (" beside them" if job.servers == "colocated" else "")
        + f"; sync {job.policy()}, {'in place' if strategy.in_place else 'by copy'}",
        f"data {data.name}: {len(data.x)} training and {len(data.test_x)} test rows x {data.x.shape[1]} features, {data.n_classes} classes",
        f"model {job.model}: {strategy.net.n_params:,} parameters; {strategy.n_clocks} clocks of {job.batch} samples; optimizer {job.optimizer}, learning rate {job.lr:g}",
    ]
    bound = strategy.policy.bound
    if job.tune and bound != 0:
        typical = strategy.policy.tuning(1)
        lines.append(
            f"stale updates are softened: at staleness 1 the rate is multiplied by {typical.rate:g} and momentum's memory divided by {typical.memory:g} (--no-tune: off)"
        )
    if job.deterministic:
        lines.append("deterministic: repeat mode - the same layout gives the same bits")
    return "\n".join(lines)


def _closing(summary: dict[str, Any], folder: RunFolder | None) -> str:
    quality = f"test accuracy {summary['test_accuracy']:.2%}, " if summary["test_accuracy"] is not None else ""
    busy, wait, moved = (sum(summary[k]) for k in ("compute_seconds", "wait_seconds", "comm_seconds"))
    total = max(busy + wait + moved, 1e-12)
    rate = summary["samples_per_second"] or 0.0
    return (
        f"done: {quality}loss {summary['final_loss']:.4f} after {summary['samples']:,} samples in {summary['seconds']:.2f} s ({rate:,.0f} samples/s)\n"
        f"ranks were busy {busy / total:.0%}, waiting {wait / total:.0%}, communicating {moved / total:.0%} of the time; staleness at most {summary['staleness_max']}"
        + (f"\nwritten: {folder.path}/ (report.png, summary.json, metrics.jsonl, model.safetensors, config.toml)" if folder is not None else "")
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
