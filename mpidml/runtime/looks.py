"""Look at a run where it pauses after each epoch: score its parameters on the validation rows, keep the best, say when to end.

    epoch 1 --pause, look--> epoch 2 --pause, look--> ...          nobody computes, all that was pushed is applied: the parameters are one version
    servers' shards          copied where the loss was the least

So the score is that of the very parameters that are kept, under every policy; and no timing decides, so repeat mode repeats.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from mpidml.core.patience import Patience
from mpidml.core.position import Position
from mpidml.core.role import Array
from mpidml.runtime import gather, scoring
from mpidml.runtime.checkpoint import Checkpoint, Piece
from mpidml.runtime.comm import CountedComm


class Looks:
    """The looks of a run; `monitor` is rank 0's. Between hosts each look costs every rank the parameters once. All methods but `due` are collective."""

    def __init__(self, strategy: Any, comm: CountedComm, monitor: Any) -> None:
        self.strategy, self.comm, self.monitor = strategy, comm, monitor
        self.patience = Patience(strategy.job.patience)
        self.best: dict[int, Array] = {}
        self.gathered: Array | None = None
        self.looked = Position()

    def due(self, position: Position, is_end: bool) -> bool:
        """Tell whether an epoch has ended since the last look, or the run, with anything done."""
        return self._epoch_ended(position) or (is_end and position != self.looked)

    def look(self, position: Position) -> bool:
        """Score the parameters, keep them if they are the best so far, and return whether the run is to end (Collective on comm)."""
        since = time.perf_counter()
        counts, self.looked = self._epoch_ended(position), position  # the end of a run that goes on later may lie within an epoch
        scores = self._scores(self._values(position), "val")
        if self.patience.look(self.strategy.data.judged(scores)["val_loss"], self._clocks(position) / self._per_epoch, counts):
            for number, store in self.strategy.stores.items():
                np.copyto(self.best.setdefault(number, np.empty_like(newest := store.at(store.latest))), newest)
        reached = False
        if self.monitor is not None:
            own = [each["val"] for each in scores]
            self.monitor.look(*scoring.total(own), time.perf_counter() - since, scoring.of_heads(own))
            reached = self.monitor.reached is not None
        return bool(self.comm.bcast(reached)) or self.patience.over

    def end(self, position: Position) -> tuple[Any, dict[str, float | None]]:
        """Take the best parameters for the final ones; return them and how good they are (Collective on comm)."""
        for number, best in self.best.items():
            self.strategy.stores[number].put(best)
        self.strategy.refresh()
        values: Any = self._values(position) if self.strategy.whole else gather.to_first(self.strategy, self.comm)
        return values, self.strategy.data.judged(self._scores(values, "test", "val")) | {"best_epoch": self.patience.epoch, "best_val_loss": self.patience.least}

    def pieces(self) -> list[Piece]:
        """Return what of the best parameters lies on this rank."""
        size = self.strategy.net.n_params
        return [Piece("best", self.strategy.extent(number)[0], size, best.ravel()) for number, best in self.best.items()]

    def restore(self, saved: Checkpoint, position: Position) -> None:
        """Go on from a checkpoint; one of a run without patience knows of no best."""
        self.looked = position
        if "patience" not in saved.facts:
            return
        self.patience.restore(saved.facts["patience"])
        for number, store in self.strategy.stores.items() if self.patience.least is not None else ():
            self.best[number] = np.empty_like(store.at(store.latest))
            saved.read("best", self.strategy.extent(number)[0], self.best[number].ravel())

    def _epoch_ended(self, position: Position) -> bool:
        return self._clocks(position) // self._per_epoch > self._clocks(self.looked) // self._per_epoch

    @property
    def _per_epoch(self) -> int:
        return int(self.strategy.sampler.clocks_per_epoch)

    def _clocks(self, position: Position) -> int:
        return sum(position.turns) // int(self.strategy.n_workers)

    def _values(self, position: Position) -> Array:
        """Return all parameters on every rank: those in the window, or brought from the servers."""
        strategy = self.strategy
        if strategy.views:
            shared: Array = strategy.views[position.clock % strategy.copies]
            return shared
        if self.gathered is None:
            self.gathered = np.empty(strategy.net.n_params, strategy.net.dtype)
        gather.to_all(strategy, self.comm, self.gathered)
        return self.gathered

    def _scores(self, values: Array, *names: str) -> list[dict[str, scoring.Scores]]:
        """Return the scores of every worker's share of the named rows, in the order of ranks."""
        found = self.comm.allgather([{of: task.score(values, of) for of in names} for task in self.strategy.tasks.values()])
        return [scores for own in found for scores in own]
