"""Make rank 0's picture of a run from what workers measure: rows for metrics.jsonl, one line of progress, and the moment when a target is reached.

Reports are put in the order of their time, as far as all workers have told theirs; each `n_workers` of them are a clock of the row. Where all go from
clock to clock together, or a run that comes again shall have the same rows (`by_clock`), they are those of one clock of the tables, whichever reports come first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.core.target import Target
from mpidml.runtime.outputs import RunFolder
from mpidml.runtime.progress import Progress, launcher_terminal
from mpidml.runtime.scoring import exact, n_of_heads

COLUMNS = (
    "worker", "seconds", "clock", "staleness", "counts", "step_seconds", "loss", "samples", "look_loss", "look_score", "look_rows", "evaluation_seconds", "evaluation",
    "look_loss_rest", "look_score_rest",
)  # fmt: skip
"""A worker's report: the staleness of its read, whether its gradient counts, the seconds of its compute, sums over its own samples; seconds since the run began.
`look_score`: how many are right,
or in a regression their squared errors; what rounding has left of the two sums stands behind. Where several heads learn, loss and score of each follow the
columns, and then what rounding has left of these.
`evaluation` numbers the time at which the rows were looked at. A clock of -1: the worker computes no more."""
N_COLUMNS = len(COLUMNS)
CLOCK, LOOKED = COLUMNS.index("clock"), COLUMNS.index("look_loss")
MOST_ROWS = 5000
STRETCH = 50  # clocks
KEPT = ("samples", "dropped_samples", "n_groups", "diverged_at", "evaluation_seconds", "reached", "n_pending", "pending_loss", "last")


class Monitor:
    """Join the reports of `n_workers` workers. `write(row)` takes each finished row; `metrics` keeps them; `reached`: the first that met the `target`.

    `quality` makes measures of a score, its number of rows and their loss: of the rows that are looked at once an epoch, `n_looked_at` of which there
    are, the `of` ("test", "val") ones. Where the run `pauses` to look, a row is written when the next comes, since the look may add to it.
    """

    def __init__(
        self,
        n_workers: int,
        n_clocks: int,
        clocks_per_epoch: int,
        progress: Progress | None,
        write: Callable[[dict[str, Any]], None],
        quality: Callable[..., dict[str, float | None]],
        n_looked_at: int = 0,
        target: Target | None = None,
        limit_seconds: float = 0.0,
        of: str = "test",
        pauses: bool = False,
        by_clock: bool = False,
        n_of_heads: int = 0,
    ) -> None:
        self.n_workers, self.clocks_per_epoch, self.epochs = n_workers, clocks_per_epoch, n_clocks / clocks_per_epoch
        self.progress, self.write, self.quality, self.n_looked_at, self.target, self.limit_seconds = progress, write, quality, n_looked_at, target, limit_seconds
        self.of, self.pauses, self.by_clock, self.n_written = of, pauses, by_clock, 0
        self.every = -(-n_clocks // MOST_ROWS) if not limit_seconds else 1
        self.metrics: list[dict[str, Any]] = []
        # Who took how long, without the looks, of every `stride`-th stretch of STRETCH clocks, so that a long run is kept in parts that are spread evenly.
        self.steps: dict[int, list[tuple[list[int], list[float]]]] = {}
        self.stride, self.n_finished = 1, 0
        self.latest = np.full(n_workers, -math.inf)
        self.width = N_COLUMNS + n_of_heads
        self.unsorted = np.empty((0, self.width))
        self.sorted = np.empty((0, self.width))
        self.samples = self.dropped_samples = self.n_groups = 0
        self.diverged_at: int | None = None
        self.evaluation_seconds = 0.0
        self.reached: dict[str, Any] | None = None
        self.scores: dict[int, list[list[float]]] = {}  # evaluation -> the reports of parts of the rows, from look_loss on
        self.ready: list[list[float]] = []
        self.n_pending = 0
        self.pending_loss = 0.0
        self.last: tuple[float, ...] = ()

    def pause(self) -> None:
        """Take all reports as told: everybody has stopped and none is on its way."""
        self._join(math.inf)

    def look(self, loss: float, score: float, rows: int, seconds: float, of_heads: Sequence[float] = ()) -> None:
        """Add a look at a paused run, which took `seconds` from training, to the last row."""
        self.evaluation_seconds += seconds
        if self.n_pending:
            self._emit()
        if self.metrics:
            self.metrics[-1] |= self._looked(loss, score, rows, of_heads)
            self._judge(self.metrics[-1])
            if self.progress is not None:
                self._show(self.metrics[-1], self.metrics[-1])

    def flush(self, n_held: int = 0) -> None:
        """Write the rows that are not written yet, but for the last `n_held`."""
        n = max(len(self.metrics) - n_held, self.n_written)
        for row in self.metrics[self.n_written : n]:
            self.write(row)
        self.n_written = n

    def state(self) -> dict[str, Any]:
        """Return what a run that goes on must know besides its `metrics`, as plain values."""
        kept = {name: getattr(self, name) for name in KEPT}
        return kept | {"scores": [[k, *parts] for k, parts in self.scores.items()], "ready": self.ready, "sorted": self.sorted.tolist()}

    def restore(self, state: dict[str, Any], metrics: list[dict[str, Any]], same_target: bool = True) -> None:
        """Go on from `state` and the rows that were written before it; another target is not reached yet."""
        for name in KEPT:
            setattr(self, name, state[name])
        if not same_target:
            self.reached = None
        self.scores = {int(k): parts for k, *parts in state["scores"]}
        self.ready, self.metrics = state["ready"], metrics
        self.n_written = len(metrics)
        left = np.array(state["sorted"]).reshape(-1, self.width)
        self.sorted = left[left[:, 0] < self.n_workers]

    def take(self, rows: list[tuple[float, ...]]) -> None:
        """Add reports in any order."""
        if not rows:
            return
        table = np.array(rows)
        workers, leaves = table[:, 0].astype(np.int64), table[:, 2] < 0
        np.maximum.at(self.latest, workers, np.where(leaves, math.inf, table[:, 1]))
        self.unsorted = np.concatenate([self.unsorted, table[~leaves]])
        self._join(self.latest.min())

    def hear(self, rows: list[tuple[float, ...]]) -> None:
        """Add the reports, if any, that have come while the run is driven; where all workers have come to their end and it has not, let that be said."""
        self.take(rows)
        if self.progress is not None and self.latest.min() == math.inf:
            self.progress.drains()

    def _join(self, until: float) -> None:
        """Finish the groups that are whole by the time `until`."""
        self._sort(until)
        start, n = 0, self.n_workers
        while start + n <= len(self.sorted) and not (self.by_clock and self.sorted[start, CLOCK] != self.sorted[start + n - 1, CLOCK]):
            self._finish(self.sorted[start : start + n])
            start += n
        self.sorted = self.sorted[start:]

    @property
    def step_seconds(self) -> list[list[float]]:
        """The seconds of each worker's computes that are kept: all of a short run."""
        found: list[list[float]] = [[] for _ in range(self.n_workers)]
        for kept in self.steps.values():
            for workers, seconds in kept:
                for w, s in zip(workers, seconds, strict=True):
                    found[w].append(s)
        return found

    def _sort(self, until: float) -> None:
        told = self.unsorted[:, 1] <= until
        found, self.unsorted = self.unsorted[told], self.unsorted[~told]
        self.sorted = np.concatenate([self.sorted, found[np.lexsort((found[:, 0], found[:, 1]))]])
        if self.by_clock:
            self.sorted = self.sorted[np.argsort(self.sorted[:, CLOCK], kind="stable")]

    def _finish(self, group: Array) -> None:
        worker, seconds, clock, staleness, counts, step_seconds, loss, samples, _, _, n_tested, scoring, *_ = group.T[:N_COLUMNS]
        if not (number := self.n_finished // STRETCH) % self.stride:
            self.steps.setdefault(number, []).append((worker.astype(int).tolist(), (step_seconds - scoring).tolist()))
            if len(self.steps) > MOST_ROWS // STRETCH:
                self.stride *= 2
                self.steps = {number: kept for number, kept in self.steps.items() if not number % self.stride}
        self.n_finished += 1
        if n_tested.any():
            self._score(group[n_tested > 0])
        total_loss, n = exact((loss * counts).tolist()), float((samples * counts).sum())  # who comes first decides no bit
        if self.diverged_at is None and not math.isfinite(total_loss):
            self.diverged_at = int(clock.max())
        self.samples += int(n)
        self.dropped_samples += int(samples.sum() - n)
        self.n_groups += 1
        self.n_pending += 1
        self.pending_loss += total_loss / max(n, 1)
        self.last = (self.n_groups - 1, seconds.max() - self.evaluation_seconds, self.samples, staleness.mean())
        if self.n_pending >= self.every << len(self.metrics) // MOST_ROWS or self.ready:
            self._emit()

    def _score(self, rows: Array) -> None:
        """Add up scores of parts of the rows; what all workers score at one time costs training as long as the longest."""
        for row in rows[:, LOOKED:].tolist():
            parts = self.scores.setdefault(int(row[4]), [])
            self.evaluation_seconds += max(row[3] - max((part[3] for part in parts), default=0.0), 0.0)
            parts.append(row)
        if whole := [evaluation for evaluation, parts in self.scores.items() if sum(part[2] for part in parts) >= self.n_looked_at]:
            self.ready.append(_added(self.scores[max(whole)]))
            # A worker that was too slow for an epoch has left a part of its evaluation out for ever: that one has no score.
            self.scores = {evaluation: parts for evaluation, parts in self.scores.items() if evaluation > max(whole)}

    def _emit(self) -> None:
        """Write one row for the groups since the last one: their mean loss, the rest as of the last."""
        clock, seconds, samples, staleness = self.last
        row: dict[str, Any] = {"clock": int(clock), "epoch": self.n_groups / self.clocks_per_epoch, "seconds": float(seconds), "samples": int(samples)}
        row |= {"loss": self.pending_loss / self.n_pending, "staleness": float(staleness)}
        if self.ready:
            loss, score, rows, *of_heads = self.ready.pop()
            row |= self._looked(loss, score, rows, of_heads)
            self.ready.clear()
        self.n_pending, self.pending_loss = 0, 0.0
        self.metrics.append(row)
        self._judge(row)
        self.flush(int(self.pauses))
        if self.progress is not None:
            self._show(row, row)

    def _looked(self, loss: float, score: float, rows: float, of_heads: Sequence[float]) -> dict[str, Any]:
        return {f"{self.of}_loss": loss / rows} | {k: v for k, v in self.quality(score, rows, loss, self.of, *of_heads).items() if v is not None}

    def _judge(self, row: dict[str, Any]) -> None:
        if self.reached is None and self.target is not None and self.target.reached(row):
            self.reached = row

    def _show(self, row: dict[str, Any], quality: dict[str, Any], ended: bool = False) -> None:
        assert self.progress is not None
        rate = row["samples"] / row["seconds"] if row["seconds"] > 0 else 0.0
        done = row["seconds"] / self.limit_seconds if self.limit_seconds else row["epoch"] / self.epochs if ended else None
        epochs = None if self.limit_seconds else self.epochs
        accuracy, rmse = (quality.get(f"{self.of}_{name}") for name in ("accuracy", "rmse"))
        self.progress.update(row["samples"], row["epoch"], epochs, row["loss"], rate, row["staleness"], accuracy, done, rmse)

    def end(self, final: dict[str, float | None]) -> None:
        """Take all that is left, add the scores of the `final` parameters to the last row, and end the line of progress."""
        self._sort(math.inf)
        for start in range(0, len(self.sorted), self.n_workers):
            self._finish(self.sorted[start : start + self.n_workers])
        if self.n_pending:
            self._emit()
        self.flush()
        loss = final.get(f"{self.of}_loss")
        if self.diverged_at is None and not math.isfinite(loss or 0.0):  # what workers compute with may be finite where codes hold back what is not
            self.diverged_at = int(self.last[0])
        if self.metrics and loss is not None:
            self.metrics[-1] = self.metrics[-1] | {f"final_{name}": value for name, value in final.items()}
            self._judge(self.metrics[-1])
        if self.progress is not None:
            if self.metrics:
                self._show(self.metrics[-1], final, ended=True)
            self.progress.close()


def _added(parts: Sequence[Sequence[float]]) -> list[float]:
    """Return the loss, score and rows of all parts, and loss and score of each of several heads: sums and what rounding has left of them, added exactly."""
    columns = list(zip(*parts, strict=True))
    n = (len(columns) - N_COLUMNS + LOOKED) // 2
    sums, rests = (*columns[:2], *columns[7 : 7 + n]), (*columns[5:7], *columns[7 + n :])
    loss, score, *of_heads = (exact((*rounded, *rest)) for rounded, rest in zip(sums, rests, strict=True))
    return [loss, score, sum(columns[2]), *of_heads]


def of_run(strategy: Any, folder: RunFolder | None, quiet: bool) -> Monitor:
    """Return the monitor of a run that is prepared, which writes to its folder and shows progress."""
    n_clocks, sampler, job = strategy.n_clocks, strategy.sampler, strategy.job
    samples = sum(sampler.batch_size(c) for c in range(n_clocks)) if n_clocks < 10**6 else n_clocks * job.batch
    progress = None if quiet else Progress(samples, sys.stdout, launcher_terminal())

    write = folder.append_metrics if folder is not None else lambda row: None
    limit = job.seconds if strategy.endless else 0.0
    n, quality, target, of = len(strategy.data.rows(job.looks_at)[0]), strategy.data.quality, strategy.target, job.looks_at
    rows = sampler.clocks_per_epoch, progress, write, quality, n, target, limit, of, bool(job.patience), strategy.in_step
    return Monitor(strategy.n_workers, n_clocks, *rows, n_of_heads(strategy.net))
