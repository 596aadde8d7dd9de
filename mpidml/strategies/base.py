"""Run a job from its description to its folder: the one loop around every strategy.

    check -> load data -> build the network -> prepare roles -> drive them -> gather -> write
                                                            ^              |
                                                            +- look, save -+    where the run pauses after an epoch, for a checkpoint

Everything that can be wrong with a job's input is found before `drive`, and nothing is written before it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from mpidml.core import plugins
from mpidml.core.job import AUTO, Job
from mpidml.core.position import Position
from mpidml.core.trace import Trace
from mpidml.runtime import abort, checkpoint, data_print, device, device_fault, events, resume, run_files, scoring, slurm, sparse_rows, summary
from mpidml.runtime.agree import agree
from mpidml.runtime.arithmetic import beyond, compile_on, compiled
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import check_target, load, on_arrays
from mpidml.runtime.gather import bring
from mpidml.runtime.looks import Looks
from mpidml.runtime.model import Model
from mpidml.runtime.monitor import N_COLUMNS, of_run
from mpidml.runtime.net import build_net
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.start import Start, gather
from mpidml.runtime.telemetry import Telemetry
from mpidml.runtime.threads import chosen, one_thread, warning
from mpidml.sim import what_if

ASKED = -1.0
"""In place of a worker's number: a signal asks this rank to end."""


def train(
    job: Job,
    comm: CountedComm | None = None,
    quiet: bool = False,
    write: bool = True,
    keep: dict[str, Any] | None = None,
    brief: bool = False,
    data: Sequence[Any] | None = None,
    start: Start | None = None,
) -> dict[str, Any]:
    """Train as `job` says and return the summary on every rank (Collective on comm; default: all ranks).

    Rank 0 shows progress unless `quiet` (nothing besides if `brief`), and writes the run folder if `write`; `keep` is given the trained
    `model`, its `network` and `values`, and on rank 0 the `metrics`. `data`: arrays x, y (or x, y, test_x, test_y) in place of the job's file, alike
    on every rank; `start`: what a run on arrays begins with, and `keep` is then given what another may go on from, `kept`.
    UserError for bad input, before any work. Without `comm`, on several ranks, an uncaught
    exception or a signal on one rank ends them all from now on; with checkpoints SIGTERM and SIGUSR1 save and end the run, and the summary
    is then {"paused_at_clock": ...} alone.
    """
    with given_or_all(comm) as ranks, ExitStack() as held:
        try:
            run = Run(job, ranks, quiet, write, brief, data, start, held)
        except resume.Ended as error:
            return resume.ended(job, ranks, error, quiet)
        run.drive()
        return run.end(keep)


class Run:
    """One run of a job on the ranks of `comm`, from its check to its folder. All methods are collective."""

    def __init__(
        self, job: Job, comm: CountedComm, quiet: bool, write: bool, brief: bool, arrays: Sequence[Any] | None = None,
        start: Start | None = None, held: ExitStack | None = None,
    ) -> None:  # fmt: skip
        """Find what can be wrong, read the data, make roles' state, and go to where an earlier run was saved; `held` is left when the run has ended."""
        self.comm, self.quiet, self.brief, self.held, self.path = comm, quiet, brief, held or ExitStack(), Path()
        self.leads = leads = comm.rank == 0
        self.job = job = agree(comm, lambda: job.checked() if arrays is None else on_arrays(job.checked()))
        self.held.enter_context(abort.limit_waits(job.wait_limit))
        self.held.enter_context(device_fault.told(self._goes_on))
        if job.resume == AUTO:
            self.job = job = comm.bcast(agree(comm, lambda: resume.found(job) if leads else job))
        left = agree(comm, lambda: slurm.check(job, os.environ) if leads else None)
        self.deadline = None if left is None else slurm.Deadline(time.perf_counter() + left)
        self.strategy: Any = agree(comm, lambda: plugins.load("mpidml.strategies", job.strategy)(job, comm))
        if job.deterministic or (self.strategy.same_bits and not chosen(os.environ)):
            self.held.enter_context(one_thread())
        crowded = warning(comm)
        agree(comm, lambda: events.check(job, write))
        goes_on = bool(job.resume) and Path(job.out) == Path(job.resume)
        folder = agree(comm, lambda: run_files.open_folder(job, goes_on) if leads and write else None)
        if folder is not None:
            self.held.callback(folder.leave)
        saved, told = checkpoint.newest(comm, Path(job.resume)) if job.resume else (None, "")
        metrics = agree(comm, lambda: resume.metrics(Path(job.resume), saved.facts["n_metrics"]) if saved is not None and leads else [])
        where = device.of_job(job, comm)
        self.start, self.data = start, (data := load(job, comm, arrays, start))
        self.held.callback(data.close)
        check_target(job, data)
        arithmetic = compiled(job, comm, quiet)
        self.net = agree(comm, lambda: build_net(job, data, arithmetic, where))
        sparse_rows.check(job, data, self.strategy)
        if more := beyond(job, data.is_sparse, self.net, getattr(self.strategy, "grid", None)):  # before the clock runs
            compiled(job, comm, quiet, more)
        compile_on(where, job, more)
        width = N_COLUMNS + scoring.n_of_heads(self.net)
        self.telemetry, self.nothing_measured = Telemetry(comm, width), (0.0,) * (width - 3)
        self.trace = Trace() if job.trace else None
        self.quotas: list[tuple[float, ...]] = []
        self.asked: Callable[[], int] = lambda: 0
        self.began = self.started = self.seconds = self.saving_seconds = self.saved_seconds = 0.0
        self.position, self.before, self.paused_by = Position(), dict[str, Any](), 0
        self.strategy.prepare(self.net, data, self._record, self._look, self.trace, self._over if job.seconds else None)
        if start is not None:
            self.position = start.go_on(self.strategy)
        self.monitor = of_run(self.strategy, folder, quiet) if leads else None
        self.looks = Looks(self.strategy, comm, self.monitor) if job.patience else None
        if saved is not None:
            resume.check(job, self.strategy, saved)
            self.position = agree(comm, lambda: resume.restore(self.strategy, saved))
            self.before = resume.measured(self.strategy, saved)
            self.saved_seconds = float(saved.facts["seconds"])
            if self.monitor is not None:
                self.monitor.restore(saved.facts["monitor"], metrics, same_target=job.target == saved.facts["job"]["target"])
            if self.looks is not None:
                self.looks.restore(saved, self.position)
        told += agree(comm, lambda: run_files.claim(folder, job, goes_on, metrics) if folder is not None else "")  # once all is allocated
        if saved is not None and leads and goes_on:
            checkpoint.drop_newer(saved)
        self.folder, self.path = folder, Path(comm.bcast(str(folder.path) if folder is not None else ""))
        if leads and not quiet and not brief:
            summary.say(told + crowded + slurm.unused(os.environ, comm.size) + summary.opening(job, self.strategy, data, self.position))

    def _record(self, role: int, now: float, name: str, value: tuple[float, ...]) -> None:
        """Take what a role of this rank notes."""
        worker = role - self.strategy.worker_roles.start
        if name == "clock":
            self.telemetry.add((worker, now - self.started, *value))
        elif name == "left":
            self.telemetry.add((worker, now - self.started, -1.0, *self.nothing_measured))
        elif name == "quota":
            self.quotas.append((now - self.started, *value))
        elif self.trace is not None:
            self.trace.add("pull", value[1], value[2], int(value[0]))

    def _look(self, now: float) -> None:
        """Pass news on to rank 0; there, end the run when its target is reached or a signal asks for it."""
        if self.asked():
            self.telemetry.add((ASKED, now - self.started, 0.0, *self.nothing_measured))
        if self.monitor is None:
            self.telemetry.send()
            return
        news = self.telemetry.receive()
        self.monitor.hear([row for row in news if row[0] != ASKED])
        if self.deadline is not None and (text := self.deadline.told(self.monitor.n_groups - self.n_before, now - self.began, now)):
            self._say(text)
        if self.strategy.coordinator is None:
            return
        if self.monitor.reached is not None:
            self.strategy.coordinator.stop()
        elif any(row[0] == ASKED for row in news):
            self.strategy.coordinator.stop(pause=True)

    def _over(self, now: float) -> bool:
        return now - self.started - (self.monitor.evaluation_seconds if self.monitor is not None else 0.0) >= self.job.seconds

    def drive(self) -> None:
        """Run the roles to the end, looking at the run and saving it wherever it pauses, or until a look or a signal ends it."""
        comm, strategy, job = self.comm, self.strategy, self.job
        comm.Barrier()
        self.sent_before = comm.nbytes_sent, comm.n_sent
        self.began = time.perf_counter()
        if comm.one_host:
            self.began = comm.bcast(self.began)  # one clock for all, so that reports of different ranks come in their true order
        self.started = self.began - self.saved_seconds
        saves = bool(job.checkpoint_every) and bool(self.path.name)
        if self.monitor is not None:
            self.n_before = self.monitor.n_groups
            if self.deadline is not None:
                self.deadline.expect(job.checkpoint_every * saves, strategy.n_clocks - self.n_before, job.seconds)
        self.data_sum = data_print.of(self.data) if saves and self.leads else ""
        with np.errstate(all="ignore"), resume.asking(saves, self._interrupted, self._goes_on if self.leads and not self.quiet else None) as self.asked:
            while True:
                since = time.perf_counter()
                strategy.driver.roles = strategy.roles(self.position, self._next_pause(saves))
                strategy.driver.run()
                self.seconds += time.perf_counter() - since
                if not saves and self.looks is None:
                    return
                ends = not comm.bcast(strategy.coordinator.pauses if self.leads else None)
                self._join()
                if self.looks is not None and self.looks.due(self.position, ends):
                    ends |= self.looks.look(self.position)
                if saves:
                    self._save(ends)
                if ends:
                    return
                if number := max(comm.allgather(self.asked())):
                    self.paused_by = number
                    return

    def _goes_on(self) -> str:
        return summary.interrupted(checkpoint.last(self.path) if self.path.name else None, self.path)

    def _interrupted(self) -> None:
        """Say from where the run can go on that a signal ends at once; the other ranks, whose end takes rank 0 along, wait for that."""
        if not self.leads:
            time.sleep(resume.TELL_SECONDS)
        else:
            self._say(self._goes_on())

    def _say(self, text: str) -> None:
        """Say something beside the progress line."""
        if self.monitor is not None and not self.quiet:
            if self.monitor.progress is not None:
                self.monitor.progress.close()
            summary.say(text)

    def _next_pause(self, saves: bool) -> int:
        """Return the turns of each worker after which the run pauses next, 0 for never; the last clock is its end, no pause."""
        done = sum(self.position.turns) // self.strategy.n_workers
        reasons = [self.job.checkpoint_every] * saves + [self.strategy.sampler.clocks_per_epoch] * (self.looks is not None)
        following = min(((done // every + 1) * every for every in reasons), default=0)
        return following if following < self.strategy.n_clocks else 0

    def _join(self) -> None:
        """Bring together on rank 0 what was measured until all stopped, and find where the run stands."""
        rows = self.telemetry.drain()
        if self.monitor is not None:
            self.monitor.take([row for row in rows if row[0] != ASKED])
            self.monitor.pause()
        self.position = self.strategy.position()

    def _measured(self) -> dict[str, Any]:
        sent = self.comm.nbytes_sent - self.sent_before[0], self.comm.n_sent - self.sent_before[1]
        return summary.of_rank(self.strategy, sent, self.started, self.seconds, self.before)

    def _save(self, ends: bool) -> None:
        since = time.perf_counter()
        if self.monitor is not None:
            self.monitor.flush()
        facts = resume.facts(self.strategy, self.comm, self.position, since - self.started, self.monitor, self.data_sum, self._measured())
        clock = sum(self.position.turns) // self.strategy.n_workers
        facts |= {"time_is_up": ends and bool(self.job.seconds) and clock < self.strategy.n_clocks}  # unless it has met its target, which is asked first
        pieces = resume.pieces(self.strategy)
        if self.looks is not None:
            pieces, facts = pieces + self.looks.pieces(), facts | {"patience": self.looks.patience.state()}
        checkpoint.write(self.comm, self.path, clock, pieces, facts, self.job.keep_checkpoints)
        self.saving_seconds += time.perf_counter() - since

    def end(self, keep: dict[str, Any] | None) -> dict[str, Any]:
        """Gather what came of the run, write and say it, and return the summary on every rank."""
        comm, strategy, monitor, leads = self.comm, self.strategy, self.monitor, self.leads
        if self.paused_by:
            if self.folder is not None:
                self.folder.close()
            self._say(summary.paused(self.paused_by, strategy, self.position, self.path))
            strategy.free()
            if self.job.requeue and self.paused_by == signal.SIGUSR1:
                agree(comm, lambda: slurm.requeue(os.environ) if leads else None)
            return {"paused_at_clock": sum(self.position.turns) // strategy.n_workers}
        rows = self.telemetry.drain()
        best, final = self.looks.end(self.position) if self.looks is not None else (None, {})
        ranks, scores = comm.gather(self._measured()), comm.gather([w.result for w in strategy.workers.values()])
        values = bring(strategy, comm) if self.looks is None else best
        told = strategy.told()
        traces = comm.gather(run_files.since(self.trace.columns(), self.started)) if self.trace is not None else None
        found: dict[str, Any] | None = None
        if monitor is not None and ranks is not None:
            monitor.take([row for row in rows if row[0] != ASKED])
            if self.looks is None:
                final = self.data.judged([score for own in scores for score in own])
            monitor.end(final)
            found = summary.of_job(self.job, strategy, comm, monitor, ranks, final, values, self.quotas)
            found |= {"checkpoint_seconds": self.saving_seconds} | told
            found |= what_if.told(self.job, monitor.step_seconds, monitor.n_finished)
            if self.folder is not None:
                run_files.write(self.folder, strategy, self.data, found, monitor.metrics, values, traces)
            if not self.quiet and not self.brief:
                summary.say(summary.closing(found, None if self.folder is None else self.folder.path, self.job.report))
        if self.path.name:
            comm.Barrier()  # while rank 0 writes and draws
        if keep is not None:
            keep["network"] = self.net
            keep["metrics"] = monitor.metrics if monitor is not None else None
            keep["step_seconds"] = monitor.step_seconds if monitor is not None else None
            keep["values"] = comm.bcast(values.copy() if values is not None and leads else None)
            keep["model"] = Model(copy(self.net), keep["values"], self.data.scaler, self.data.targets, self.data.heads)
            if self.start is not None:
                keep["kept"] = gather(strategy, comm, keep["model"])
        strategy.free()
        result: dict[str, Any] = comm.bcast(found)
        return result
