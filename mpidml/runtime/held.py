"""Hold a stage of a pipeline on its rank: weights, gradient, the slots of what is in flight, and the channels to its neighbours.

    slots    item % n: activations of the microbatches in flight, and the arrays by which a stage meets its neighbours
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidml.core.balance import route
from mpidml.core.role import Array
from mpidml.nn.on_device import OnDevice
from mpidml.nn.stage import Stage
from mpidml.nn.step import Edges, Memory, Step
from mpidml.runtime.scoring import BLOCK


class Held:
    """A stage on this rank: its weights and gradient, its sides of the channels, and a step for each combination of slots that comes up.

    `store` holds the weights that are computed with, in as many versions as are read at once; where they, gradient and optimizer stay on a device it is of the
    device's arrays, and `here` the host's store beside it, which is saved, restored and compared. `every`: microbatches that make an update; `n_slots`: those
    whose activations are kept at once, unless a stage `recomputes` them, which then keeps inputs alone; `m`: the most rows of one.
    A channel is None at the ends of the pipeline. `turn`: which turn of how many this rank takes at the stage's microbatches.
    `counts`: of each microbatch, or block of rows that is scored, the rows of each rank, where they are spread.
    """

    def __init__(
        self, stage: Stage, number: int, stores: tuple[Any, Any], gradient: Any, every: int, n_slots: int, m: int, recomputes: bool, channels: Sequence[Any],
        turn: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        self.stage, self.number, (self.store, self.here), self.gradient = stage, number, stores, gradient
        self.kernels = stage.backend if isinstance(gradient, np.ndarray) else stage.device.kernels  # of arithmetic on the gradient
        self.every, self.n_slots, self.recomputes, (self.turn, self.n_turns) = every, n_slots, recomputes, turn
        self.taken, self.given, self.taken_back, self.given_back = channels
        self.memory = [Memory(m, stage.backend) for _ in range(1 if recomputes else n_slots)]
        self.inputs = None if self.taken is not None else np.zeros((n_slots, max(m, BLOCK), stage.n_features), stage.dtype)
        self.scored = Memory(BLOCK, stage.backend)
        with self.kernels.naming("a stage's gradient of one microbatch"):
            self.summand = self.kernels.zeros(stage.n_params if every > 1 else 0, stage.dtype)
        self.early, self.late = stage.gradient_parts(adding=True)
        self.both = (*self.early, *self.late)
        self.n_summed = self.n_updated = 0
        self.counts: Sequence[tuple[int, ...]] = ()
        self.reads: dict[int, Any] = {}
        self.steps: dict[Any, Step | OnDevice] = {}
        self.scorings: dict[Any, Any] = {}

    def has(self, item: int) -> bool:
        """Tell whether a microbatch, or a block of rows, is computed on this rank."""
        return route(item, self.n_turns) == self.turn

    def slot(self, item: int) -> int:
        """Return the slot of what this rank keeps of a microbatch."""
        return item // self.n_turns % self.n_slots

    def is_first(self, item: int) -> bool:
        """Tell whether a microbatch is the first of an update on this rank."""
        return item % self.every < self.n_turns

    def weights(self, item: int = -1) -> Any:
        """Return the weights that a microbatch reads: the newest, unless it, or whoever reads (-1), was told of others."""
        found = self.reads.get(item, self.reads.get(-1))
        return self.store.versions[self.store.latest % len(self.store.versions)] if found is None else found

    def edges(self, item: int, rows: int) -> Edges:
        """Return the arrays by which a microbatch of so many rows comes and goes."""

        def part(channel: Any) -> Array | None:
            return None if channel is None else channel.slots[item % channel.line.n_slots][:rows]

        x = self.inputs[self.slot(item), :rows] if self.inputs is not None else part(self.taken)
        return Edges(x, part(self.given), part(self.taken_back), part(self.given_back))

    def spread(self, item: int) -> tuple[int, ...]:
        """Tell the stage how many rows of a microbatch each rank has, before it is bound, and return that; nothing where each has all."""
        if self.stage.spread is None:
            return ()
        self.stage.spread.counts = self.counts[item]
        return self.counts[item]

    def key(self, item: int, rows: int, w: Any) -> tuple[int, ...]:
        """Tell apart what needs a step of its own: rows, weights, and slots: the stage's and those of the channels."""
        channels = (c.line.n_slots for c in (self.taken, self.given, self.taken_back, self.given_back) if c is not None)
        return (rows, id(w), *self.spread(item), self.slot(item), *(item % n for n in channels))

    def step(self, item: int, rows: int) -> Step | OnDevice:
        """Return the step of a microbatch, made once for each combination; the first of an update leaves its gradient in place.

        Others add to it what their layers can, and leave the rest in `summand`.
        """
        w, first = self.weights(item), self.is_first(item)
        key = (first, *self.key(item, rows, w))
        found = self.steps.get(key)
        if found is None:
            memory = self.memory[item // self.n_turns % len(self.memory)]
            g, total = (self.gradient, None) if first else (self.summand, self.gradient)
            found = self.steps[key] = self.stage.bind(rows, w, g, memory, self.edges(item, rows), total)
        return found

    def scoring(self, block: int, rows: int, w: Any, edges: Edges) -> Any:
        """Return what scores a block of rows, made once for each combination of the slots that it comes and goes by; there is one set of activations."""
        slot = self.slot(block) if self.taken is None else block % self.taken.line.n_slots
        key = (rows, id(w), self.spread(block), slot, 0 if self.given is None else block % self.given.line.n_slots)
        if key not in self.scorings:
            assert edges.x is not None
            self.scorings[key] = self.stage.scoring(rows, w, self.scored, edges.x, edges.out)
        return self.scorings[key]

    def add(self, item: int, parts: Sequence[slice]) -> None:
        """Add those parts of the gradient that a microbatch has just left in `summand`."""
        for part in parts if not self.is_first(item) else ():
            self.kernels.add(self.gradient[part], self.summand[part])

    def claim(self, item: int, back: bool) -> None:
        """Wait until what this stage is about to write to is free."""
        channel = self.given_back if back else self.given
        if channel is not None:
            channel.claim(item)

    def expect(self, n_items: int, trains: bool) -> None:
        """Be ready for the first microbatches of a program."""
        for channel in (self.taken, self.taken_back if trains else None):
            if channel is not None:
                for item in range(min(n_items, channel.line.n_slots)):
                    channel.expect(item)

    def done(self, item: int, n_items: int, trains: bool) -> None:
        """Let go of what came for a microbatch, and be ready for the one that takes its place."""
        self.reads.pop(item, None)
        for channel in (self.taken, self.taken_back if trains else None):
            if channel is not None:
                channel.release(item)
                if (later := item + channel.line.n_slots) < n_items:
                    channel.expect(later)

    def free(self) -> None:
        """Free the channels."""
        for channel in (self.taken, self.given, self.taken_back, self.given_back):
            if channel is not None:
                channel.free()


class Local:
    """What a channel is between two stages of one rank: the same arrays, and nobody to wait for."""

    def __init__(self, line: Any, slots: Array) -> None:
        self.line, self.slots = line, slots

    def claim(self, item: int) -> None:
        """Do nothing."""

    def send(self, item: int, rows: int) -> None:
        """Do nothing."""

    def expect(self, item: int) -> None:
        """Do nothing."""

    def take(self, item: int) -> None:
        """Do nothing."""

    def release(self, item: int) -> None:
        """Do nothing."""

    def free(self) -> None:
        """Do nothing."""
