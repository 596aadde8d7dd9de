"""Make rank 0's picture of a run from what workers measure: one row a clock for metrics.jsonl, one line of progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.runtime.progress import Progress

COLUMNS = ("worker", "seconds", "clock", "staleness", "loss", "samples", "test_loss", "test_correct", "test_rows", "evaluation_seconds")
"""A worker's measurement of one clock: the staleness of its read, sums over its own samples and test rows; seconds since the run began."""
SUMS = COLUMNS[3:9]
MOST_ROWS = 5000


class Monitor:
    """Join the measurements of `n_workers` workers by clock. `write(row)` takes each finished row; `metrics` keeps them."""

    def __init__(
        self,
        n_workers: int,
        n_clocks: int,
        clocks_per_epoch: int,
        progress: Progress | None,
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        self.n_workers, self.clocks_per_epoch, self.epochs = n_workers, clocks_per_epoch, n_clocks / clocks_per_epoch
        self.progress, self.write = progress, write
        self.every = -(-n_clocks // MOST_ROWS)
        self.metrics: list[dict[str, Any]] = []
        self.open: dict[int, Array] = {}
        self.samples = 0
        self.diverged_at: int | None = None
        self.evaluation_seconds = 0.0
        self.n_pending = 0
        self.pending_loss = 0.0
        self.last: tuple[float, ...] = ()

    def take(self, rows: list[tuple[float, ...]]) -> None:
        """Add measurements in any order; a clock is finished when all workers have reported it."""
        if not rows:
            return
        table = np.array(rows)
        clocks, place = np.unique(table[:, 2].astype(np.int64), return_inverse=True)
        found = np.zeros((len(clocks), 3 + len(SUMS)))  # workers, latest seconds, longest evaluation, sums
        np.add.at(found[:, 0], place, 1)
        np.maximum.at(found[:, 1], place, table[:, 1])
        np.maximum.at(found[:, 2], place, table[:, -1])
        np.add.at(found[:, 3:], place, table[:, 3:9])
        for clock, new in zip(clocks.tolist(), found, strict=True):
            if (old := self.open.pop(clock, None)) is not None:
                latest = np.maximum(new[1:3], old[1:3])
                new += old
                new[1:3] = latest
            if new[0] == self.n_workers:
                self._finish(clock, *new[1:].tolist())
            else:
                self.open[clock] = new

    def _finish(
        self,
        clock: int,
        seconds: float,
        evaluation: float,
        staleness: float,
        loss: float,
        samples: float,
        test_loss: float,
        n_correct: float,
        n_test: float,
    ) -> None:
        self.evaluation_seconds += evaluation  # all workers score at the same clock, so the longest is what training waited
        if self.diverged_at is None and not math.isfinite(loss):
            self.diverged_at = clock
        self.samples += int(samples)
        self.n_pending += 1
        self.pending_loss += loss / max(samples, 1)
        self.last = (float(clock), seconds - self.evaluation_seconds, self.samples, staleness / self.n_workers, test_loss, n_correct, n_test)
        if self.n_pending >= self.every or n_test:
            self._emit()

    def _emit(self) -> None:
        """Write one row for the clocks since the last one: their mean loss, the rest as of the last."""
        clock, seconds, samples, staleness, test_loss, n_correct, n_test = self.last
        row: dict[str, Any] = {"clock": int(clock), "epoch": (clock + 1) / self.clocks_per_epoch, "seconds": seconds, "samples": int(samples)}
        row |= {"loss": self.pending_loss / self.n_pending, "staleness": staleness}
        if n_test:
            row |= {"test_loss": test_loss / n_test} | ({"test_accuracy": n_correct / n_test} if math.isfinite(test_loss) else {})
        self.n_pending, self.pending_loss = 0, 0.0
        self.metrics.append(row)
        self.write(row)
        if self.progress is not None:
            rate = row["samples"] / seconds if seconds > 0 else 0.0
            self.progress.update(row["samples"], row["epoch"], self.epochs, row["loss"], rate, row["staleness"], row.get("test_accuracy"))

    def end(self, test_loss: float | None, test_accuracy: float | None) -> None:
        """Add the score of the final parameters to the last row, and end the line of progress."""
        if self.n_pending:
            self._emit()
        if self.metrics and test_loss is not None:
            self.metrics[-1] = dict(self.metrics[-1], final_test_loss=test_loss, final_test_accuracy=test_accuracy)
        if self.progress is not None:
            last = self.metrics[-1]
            self.progress.update(
                last["samples"],
                last["epoch"],
                self.epochs,
                last["loss"],
                last["samples"] / max(last["seconds"], 1e-9),
                last["staleness"],
                test_accuracy,
            )
            self.progress.close()
