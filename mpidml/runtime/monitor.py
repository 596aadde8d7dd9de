"""Make rank 0's picture of a run from what workers measure: one row a clock for metrics.jsonl, one line of progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml.runtime.progress import Progress

COLUMNS = ("worker", "seconds", "clock", "loss", "samples", "test_loss", "test_correct", "test_rows", "evaluation_seconds")
"""A worker's measurement of one clock: sums over its own samples and test rows; seconds since the start of the run."""
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
        staleness: Callable[[], float],
    ) -> None:
        self.n_workers, self.clocks_per_epoch, self.epochs = n_workers, clocks_per_epoch, n_clocks / clocks_per_epoch
        self.progress, self.write, self.staleness = progress, write, staleness
        self.every = -(-n_clocks // MOST_ROWS)
        self.metrics: list[dict[str, Any]] = []
        self.open: dict[int, list[tuple[float, ...]]] = {}
        self.samples = 0
        self.evaluation_seconds = [0.0] * n_workers
        self.pending: list[dict[str, Any]] = []

    def take(self, rows: list[tuple[float, ...]]) -> None:
        """Add measurements in any order; a clock is finished when all workers have reported it."""
        for row in rows:
            clock = int(row[2])
            of_clock = self.open.setdefault(clock, [])
            of_clock.append(row)
            if len(of_clock) == self.n_workers:
                self._finish(clock, self.open.pop(clock))

    def _finish(self, clock: int, rows: list[tuple[float, ...]]) -> None:
        for measured in rows:
            self.evaluation_seconds[int(measured[0])] += measured[8]
        total = [sum(column) for column in zip(*rows, strict=True)]
        samples = int(total[4])
        self.samples += samples
        seconds = max(measured[1] for measured in rows) - max(self.evaluation_seconds)
        row: dict[str, Any] = {
            "clock": clock,
            "epoch": (clock + 1) / self.clocks_per_epoch,
            "seconds": seconds,
            "samples": self.samples,
            "loss": total[3] / max(samples, 1),
        }
        row["staleness"] = self.staleness()
        if total[7]:
            row["test_loss"], row["test_accuracy"] = total[5] / total[7], total[6] / total[7]
        self.pending.append(row)
        if len(self.pending) >= self.every or total[7]:
            self._emit()

    def _emit(self) -> None:
        """Write one row for the clocks since the last one: their mean loss, the rest as of the last."""
        row = dict(self.pending[-1], loss=sum(r["loss"] for r in self.pending) / len(self.pending))
        self.pending.clear()
        self.metrics.append(row)
        self.write(row)
        if self.progress is not None:
            rate = row["samples"] / row["seconds"] if row["seconds"] > 0 else 0.0
            self.progress.update(row["samples"], row["epoch"], self.epochs, row["loss"], rate, row["staleness"], row.get("test_accuracy"))

    def end(self, test_loss: float | None, test_accuracy: float | None) -> None:
        """Add the score of the final parameters to the last row, and end the line of progress."""
        if self.pending:
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
