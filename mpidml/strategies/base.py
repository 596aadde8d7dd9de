"""Run a job from its description to its folder: the one loop around every strategy.

    check -> load data -> build the network -> prepare roles -> drive them -> gather -> write

Everything that can be wrong with a job's input is found before `drive`, and nothing is written before it.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Any

import numpy as np
from mpidml_kernels import backend, is_compiled

from mpidml.core import plugins
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.core.trace import Trace, to_chrome
from mpidml.nn.models import build
from mpidml.runtime import summary
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import check_target, load, loss_of
from mpidml.runtime.monitor import COLUMNS, Monitor
from mpidml.runtime.outputs import FolderTaken, RunFolder, default_out, to_toml
from mpidml.runtime.progress import Progress, launcher_terminal
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.telemetry import Telemetry
from mpidml.runtime.wire import pieces
from mpidml.sim import what_if

VALUES_TAG = 9
NOTHING_MEASURED = (0.0,) * (len(COLUMNS) - 3)


def train(
    job: Job, comm: CountedComm | None = None, quiet: bool = False, write: bool = True, keep: dict[str, Any] | None = None, brief: bool = False
) -> dict[str, Any]:
    """Train as `job` says and return the summary on every rank (Collective on comm; default: all ranks).

    Rank 0 shows progress unless `quiet` (nothing besides if `brief`), and writes the run folder if `write`; `keep` is given the trained
    `network`, its `values`, and on rank 0 the `metrics`. UserError for bad input, before any work. Without `comm`, on several ranks, an uncaught
    exception or a signal on one rank ends them all from now on.
    """
    with given_or_all(comm) as ranks:
        return _train(job, ranks, quiet, write, keep, brief)


def _train(job: Job, comm: CountedComm, quiet: bool, write: bool, keep: dict[str, Any] | None, brief: bool) -> dict[str, Any]:
    leads = comm.rank == 0
    job = agree(comm, job.checked)
    strategy = agree(comm, lambda: plugins.load("mpidml.strategies", job.strategy)(job, comm))
    folder = agree(comm, lambda: RunFolder.prepare(job.out or default_out(datetime.now())) if leads and write else None)
    data = load(job, comm)
    check_target(job, data)
    arithmetic = _compiled(job.backend, comm, quiet)
    loss = loss_of(job, data)
    net = agree(comm, lambda: build(job.model, data.x.shape[1], data.n_outputs, job.widths, job.activation, job.dropout, loss, job.dtype, arithmetic))
    telemetry = Telemetry(comm, len(COLUMNS))
    trace = Trace() if job.trace else None
    agree(comm, lambda: _claim(folder, job) if folder is not None else None)
    started = 0.0

    quotas: list[tuple[float, ...]] = []

    def record(role: int, now: float, name: str, value: tuple[float, ...]) -> None:
        if name == "clock":
            telemetry.add((role - len(strategy.spec.shards), now - started, *value))
        elif name == "left":
            telemetry.add((role - len(strategy.spec.shards), now - started, -1.0, *NOTHING_MEASURED))
        elif name == "quota":
            quotas.append((now - started, *value))
        elif trace is not None:
            trace.add("pull", value[1], value[2], int(value[0]))

    def look(now: float) -> None:
        if monitor is None:
            telemetry.send()
            return
        monitor.take(telemetry.receive())
        if monitor.reached is not None and strategy.coordinator is not None:
            strategy.coordinator.stop()

    def over(now: float) -> bool:
        return now - started - (monitor.evaluation_seconds if monitor is not None else 0.0) >= job.seconds

    strategy.prepare(net, data, record, look, trace, over if job.seconds else None)
    monitor = _monitor(strategy, folder, quiet) if leads else None
    if leads and not quiet and not brief:
        summary.say(summary.opening(job, strategy, data))
    comm.Barrier()
    started = time.perf_counter()
    if comm.one_host:
        started = comm.bcast(started)  # one clock for all, so that reports of different ranks come in their true order
    with np.errstate(all="ignore"):  # a loss that is no longer a number is told once, at the end
        strategy.driver.run()
    seconds = time.perf_counter() - started
    rows = telemetry.drain()
    scores = [w.result for w in strategy.workers.values()]
    ranks = comm.gather(summary.of_rank(strategy, comm, started, seconds, scores))
    values = _bring(strategy, comm)
    traces = comm.gather(_since(trace.columns(), started)) if trace is not None else None
    found: dict[str, Any] | None = None
    if monitor is not None and ranks is not None:
        monitor.take(rows)
        test_rows = sum(n for r in ranks for _, _, n in r["scores"])
        test_loss = sum(s for r in ranks for s, _, _ in r["scores"]) / test_rows if test_rows else None
        quality = data.quality(sum(score for r in ranks for _, score, _ in r["scores"]), test_rows, test_loss)
        monitor.end(test_loss, quality)
        found = summary.of_job(job, strategy, comm, monitor, ranks, test_loss, quality, values, quotas)
        others = what_if.what_if(job.policy(), monitor.step_seconds)
        found |= {"what_if": dict(others), "what_if_sentence": what_if.sentence(others) if others else ""}
        if folder is not None:
            _write(folder, strategy, data, found, monitor, values, traces)
        if not quiet and not brief:
            summary.say(summary.closing(found, None if folder is None else folder.path))
    if keep is not None:
        keep["network"] = net
        keep["metrics"] = monitor.metrics if monitor is not None else None
        keep["step_seconds"] = monitor.step_seconds if monitor is not None else None
        keep["values"] = comm.bcast(values.copy() if values is not None and leads else None)
    strategy.free()
    result: dict[str, Any] = comm.bcast(found)
    return result


def _claim(folder: RunFolder, job: Job) -> None:
    """Make the run folder this run's own; of two that start in one second, the second takes the next name."""
    config = to_toml({name: value for name, value in job.mapping().items() if name != "out"})
    while True:
        try:
            folder.claim(config)
            return
        except FolderTaken:
            if job.out:
                raise
            folder.path = default_out(datetime.now())


def _compiled(name: str, comm: CountedComm, quiet: bool) -> Any:
    """Load the arithmetic; the first rank of each host compiles it while the others sleep, then load its cache (Collective on comm)."""
    arithmetic = None
    if comm.host.rank == 0:
        if comm.rank == 0 and name == "numba" and not quiet and not is_compiled():
            summary.say("compiling kernels, once for this machine: about 20 seconds ...")
        arithmetic = backend(name)
    comm.host_nap()
    return backend(name) if arithmetic is None else arithmetic


def _monitor(strategy: Any, folder: RunFolder | None, quiet: bool) -> Monitor:
    n_clocks, sampler, job = strategy.n_clocks, strategy.sampler, strategy.job
    samples = sum(sampler.batch_size(c) for c in range(n_clocks)) if n_clocks < 10**6 else n_clocks * job.batch
    progress = None if quiet else Progress(samples, sys.stdout, launcher_terminal())

    write = folder.append_metrics if folder is not None else lambda row: None
    limit = job.seconds if strategy.endless else 0.0
    n_test, quality = len(strategy.data.test_x), strategy.data.quality
    return Monitor(strategy.n_workers, n_clocks, sampler.clocks_per_epoch, progress, write, quality, n_test, strategy.target, limit)


def _bring(strategy: Any, comm: CountedComm) -> Any:
    """Bring the final parameters to rank 0 (Collective on comm)."""
    values: Any = strategy.final_values()
    source = strategy.placement.worker_ranks[0]
    if source != 0 and strategy.table is None:
        if comm.rank == source:
            for piece in pieces(values):
                comm.Isend(piece, 0, VALUES_TAG).Wait()
        elif comm.rank == 0:
            values = np.empty(strategy.net.n_params, strategy.net.dtype)
            for piece in pieces(values):
                comm.Irecv(piece, source, VALUES_TAG).Wait()
    return values


def _write(folder: RunFolder, strategy: Any, data: Any, found: dict[str, Any], monitor: Monitor, values: Array | None, traces: Any) -> None:
    from mpidml.runtime.report import draw

    assert values is not None
    tensors = {**strategy.net.params.views(values), **{f"scaler.{k}": v for k, v in data.scaler.state().items()}}
    if data.targets is not None:
        tensors |= {"targets.offset": data.targets.offset, "targets.scale": np.array([data.targets.scale])}
    folder.write_model(tensors, {"model_sha256": found["model_sha256"]})
    if traces is not None:
        folder.write_json(
            "trace.json", to_chrome([(r, names, columns) for r, (names, columns) in enumerate(zip(found["roles"], traces, strict=True))])
        )
    folder.close()
    draw(folder.path / "report.png", found, monitor.metrics)
    folder.write_json("summary.json", found)


def _since(columns: dict[str, Array], started: float) -> dict[str, Array]:
    """Count a rank's events from the barrier that began the run: clocks of different hosts share no other origin."""
    return {**columns, "start": columns["start"] - started}
