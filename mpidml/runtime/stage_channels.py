"""Open what lies between each two stages of a grid: their outputs go forward, the gradients of those come back."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from mpidml.nn.stage import Stage
from mpidml.runtime.channel import Line, open_channels
from mpidml.runtime.held import Local
from mpidml.runtime.scoring import BLOCK


def between(strategy: Any, every: list[list[Stage]]) -> list[tuple[Any, Any]]:
    """Return the two channels behind each stage but the last: forward and back, None where this rank has neither (Collective on the strategy's ranks).

    `every`: the stages of each part. A channel has as many slots as its ends keep microbatches, for the rows of one, or of a block that is scored.
    """
    lines = list[Line]()
    grid, n_pipe, n_parts, n_stages = strategy.grid, strategy.n_pipe, strategy.n_parts, strategy.n_stages
    kept, m = strategy.replayed.activations, max(strategy.m, BLOCK)
    for data, tensor in product(range(strategy.n_workers), range(n_parts)):
        for s in range(n_stages - 1):
            a, b = (grid.rank(data=data, pipe=stage % n_pipe, tensor=tensor) for stage in (s, s + 1))
            width, n = every[tensor][s].n_out, max(kept[s], kept[s + 1] + 1)  # one is on its way
            lines += [Line(a, b, m, width, n, f"the output of stage {s}"), Line(b, a, m, width, n, f"the gradient of stage {s}'s output")]
    dtype, own_rank = strategy.net.dtype, strategy.comm.rank
    if n_pipe == 1:
        sides: list[Any] = [Local(line, np.zeros((line.n_slots, m, line.width), dtype)) if line.source == own_rank else None for line in lines]
    else:
        sides = open_channels(strategy.comm, lines, dtype, strategy.job.transport == "auto", strategy.waiting)
    own = sides[(strategy.at["data"] * n_parts + strategy.at["tensor"]) * 2 * (n_stages - 1) :]
    return [(own[2 * s], own[2 * s + 1]) for s in range(n_stages - 1)]
