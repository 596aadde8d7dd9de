"""Hold what a run begins with, where a program goes on with what another run has learnt, and gather what the next one needs: all of it in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mpidml.core.position import Position
from mpidml.core.role import Array
from mpidml.runtime import resume
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.model import Model


class Kept(NamedTuple):
    """What a run has learnt: its model, and by name the arrays that a checkpoint has, whole; `epochs` are done, `facts` are as `resume` reads them."""

    model: Model
    epochs: int
    arrays: dict[str, Array]
    facts: dict[str, Any]

    def read(self, name: str, lo: int, out: Array) -> bool:
        """Fill `out` (1-D) with elements [lo, lo + len(out)) of an array; return whether there is one."""
        found = self.arrays.get(name)
        if found is not None:
            out[:] = found[lo : lo + out.size]
        return found is not None


class Start(NamedTuple):
    """What a run begins with: the number of classes, where its own rows may lack some (0: as the rows say), and what was learnt before."""

    n_classes: int = 0
    kept: Kept | None = None

    def go_on(self, strategy: Any) -> Position:
        """Fill what `strategy.make` has allocated, and return where the run goes on: at the beginning of an epoch (Collective on comm)."""
        if self.kept is None:
            return Position()
        done = self.kept.epochs * strategy.sampler.clocks_per_epoch
        position = Position(done, (done,) * strategy.n_workers)
        resume.fill(strategy, self.kept, position)
        return position


def gather(strategy: Any, comm: CountedComm, model: Model) -> Kept:
    """Return on every rank what a run that has ended has learnt (Collective on comm)."""
    pieces = [(of.name, of.lo, of.size, of.array.copy()) for of in resume.pieces(strategy)]
    updates = [(*strategy.extent(number), store.n_whole) for number, store in resume.mine(strategy)]
    arrays: dict[str, Array] = {}
    counts: list[tuple[int, int, int]] = []
    for own, of in comm.allgather((pieces, updates)):
        counts += of
        for name, lo, size, array in own:
            arrays.setdefault(name, np.zeros(size, array.dtype))[lo : lo + array.size] = array
    turns = strategy.position().turns
    epochs = max(1, round(sum(turns) / len(turns) / strategy.sampler.clocks_per_epoch))
    return Kept(model, epochs, arrays, {"turns": turns, "n_updates": sorted(counts), "n_keepers": strategy.n_keepers})
