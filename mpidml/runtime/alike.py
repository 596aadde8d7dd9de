"""Compare what several ranks of a grid have alike: all of a stage on its replicas, and on its parts the tensors that each of them has whole.

    data 0      tensor 0  [part 0 | bias]   tensor 1  [part 1 | bias]         bias == bias
                              ==                          ==
    data 1      tensor 0  [part 0 | bias]   tensor 1  [part 1 | bias]         bias == bias

Nothing is summed over parts of a bias, of a LayerNorm, or of a small layer: each rank makes the same update of it by itself. It has the same bits where
ranks multiply with one thread each, as under --deterministic, where alone it is compared; else ranks of unlike cores may round in their own way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from mpidml.runtime.held import Held


def digest(held: Held, ranges: Iterable[slice]) -> str:
    """Return a digest of ranges of a stage's weights and of its optimizer."""
    found, here = hashlib.blake2b(), held.here
    for of in ranges:
        for array in (here.at(here.latest), *here.optimizer.values()):
            found.update(array[of].data)
    return found.hexdigest()


def check(strategy: Any) -> None:
    """Compare weights and optimizers of the stages of a `strategy` that is cut (Collective on its comm). RuntimeError names who differs."""
    strategy.waiting.meet(strategy.comm, "the comparison of replicas")
    grid, of_parts = strategy.grid, strategy.n_parts > 1 and strategy.job.deterministic
    own = {
        s: {"data": digest(held, [slice(held.stage.n_summed)]), "tensor": digest(held, held.stage.shared() if of_parts else ())}
        for s, held in strategy.held.items()
    }
    for rank, found in enumerate(every := strategy.comm.allgather(own)):
        for axis, who, what in (("data", "replicas", "stage {} than replica 0"), ("tensor", "parts", "stage {} than part 0, in what each has whole")):
            first = every[grid.rank(**{**grid.coords(rank), axis: 0})]
            if odd := [s for s in found if found[s][axis] != first[s][axis]]:
                after = f"after clock {strategy.driver.clock} rank {rank} has other weights or optimizer state"
                raise RuntimeError(f"{who} differ: {after} of {what.format(odd[0])}")
