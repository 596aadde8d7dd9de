"""Open what lies between each two stages of a grid: their outputs go forward, the gradients of those come back."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np

from mpidml.nn.room import channel_slots
from mpidml.nn.stage import Stage
from mpidml.runtime.channel import Line, open_channels
from mpidml.runtime.held import Local
from mpidml.runtime.scoring import BLOCK


def between(strategy: Any, every: list[list[Stage]]) -> list[tuple[Any, Any]]:
    """Return the two channels behind each stage but the last: forward and back, None where this rank has neither (Collective on the strategy's ranks).

    `every`: the stages of each part. A channel has as many slots as its ends keep microbatches, or as are sent at once, for the rows of one, or of a block
    that is scored.
    """
    lines = list[Line]()
    grid, n_pipe, n_parts, n_stages = strategy.grid, strategy.n_pipe, strategy.n_parts, strategy.n_stages
    kept, sent, m = strategy.programs.activations, strategy.programs.sent, max(strategy.m, BLOCK)
    for data, tensor in product(range(strategy.n_workers), range(n_parts)):
        edges = [0]  # of the lines between each two stages
        for s in range(n_stages - 1):
            ways = grid.ways(*({"data": data, "pipe": stage % n_pipe, "tensor": tensor} for stage in (s, s + 1)))
            width, n, each = every[tensor][s].n_out, channel_slots(kept, sent, s), len(ways)
            for a, b in ways:
                lines += [Line(a, b, m, width, n, f"the output of stage {s}", each), Line(b, a, m, width, n, f"the gradient of stage {s}'s output", each)]
            edges.append(edges[-1] + 2 * each)
    dtype, own_rank = strategy.net.dtype, strategy.comm.rank
    if n_pipe == 1:
        sides: list[Any] = [Local(line, np.zeros((line.n_slots, m, line.width), dtype)) if line.source == own_rank else None for line in lines]
    else:
        sides = open_channels(strategy.comm, lines, dtype, strategy.job.transport == "auto", strategy.waiting)
    own = sides[(strategy.at["data"] * n_parts + strategy.at["tensor"]) * edges[-1] :]
    return [(_side(own[lo:hi:2]), _side(own[lo + 1 : hi : 2])) for lo, hi in pairwise(edges)]


def _side(sides: list[Any]) -> Any:
    """Return what a stage on this rank knows as its channel."""
    return Turns(sides) if any(sides) and len(sides) > 1 else sides[0]


class Turns:
    """A stage's side of the channels to ranks that take turns, as one channel: microbatch m goes by `sides[m % n]`, None where it is not for this rank."""

    def __init__(self, sides: list[Any]) -> None:
        self.sides = sides
        self.line = next(filter(None, sides)).line
        n_slots = self.line.n_slots
        self.line = self.line._replace(n_slots=n_slots * len(sides), every=1)
        self.slots = [None if side is None else side.slots[slot] for slot in range(n_slots) for side in sides]

    def of(self, item: int) -> Any:
        """Return the channel of a microbatch."""
        return self.sides[item % len(self.sides)]

    def claim(self, item: int) -> None:
        """Wait until nobody needs what the slot of `item` held before."""
        self.of(item).claim(item)

    def send(self, item: int, rows: int) -> None:
        """Send the first `rows` of the slot."""
        self.of(item).send(item, rows)

    def expect(self, item: int) -> None:
        """Be ready for an item, if it comes here."""
        if (side := self.of(item)) is not None:
            side.expect(item)

    def take(self, item: int) -> None:
        """Wait until an item is here."""
        self.of(item).take(item)

    def release(self, item: int) -> None:
        """Let the source write to the slot again."""
        self.of(item).release(item)

    def free(self) -> None:
        """Free the channels."""
        for side in filter(None, self.sides):
            side.free()
