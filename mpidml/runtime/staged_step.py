"""Run pipeline programs on MPI: one rank's actions in order, on the stages that it has.

    program     0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1 0U         each action a method of `Executor`, named in `DO`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpidml.core.action import COMPUTE, TRACED, Action
from mpidml.core.program import Program
from mpidml.core.role import Array
from mpidml.core.trace import KINDS
from mpidml.nn.on_device import OnDevice
from mpidml.nn.step import Step
from mpidml.runtime.channel import Waiting
from mpidml.runtime.held import Held
from mpidml.runtime.slowness import Slowness

clock_now = time.perf_counter
Fill = Callable[..., None]


class Executor:
    """Run programs on this rank's stages `held`, by number. It counts seconds of computes, of each stage, and of updates; `waiting`
    those of waits, also in the middle of both, which then are none of theirs. `slow` prolongs each compute, and counts to it.

    `updates` changes a stage's weights once its gradient is there: `start(held)` begins the sum over replicas, `finish(held, item)` ends it after the
    last microbatch `item`; `version(held, action)` returns the weights that a microbatch is told to read, `told(held, item)` the version that those are
    which it reads, for the trace; `meet()` waits for all ranks. On the rank of the last stage `lost(item, loss)` is told of every microbatch when it is back.
    """

    def __init__(self, held: dict[int, Held], waiting: Waiting, updates: Any, trace: Any, lost: Callable[[int, float], None], slow: Slowness) -> None:
        self.held, self.waiting, self.updates, self.trace, self.lost, self.slow = held, waiting, updates, trace, lost, slow
        self.compute_seconds = dict.fromkeys(held, 0.0)
        self.n_computed = dict.fromkeys(held, 0)
        self.update_seconds = 0.0
        self.rows: Sequence[int] = ()
        self.losses: dict[int, float] = {}
        self.fill: Fill = lambda *given: None
        self.clock = 0
        self.scale: Callable[[int], float] = lambda item: 1.0
        self.do: dict[str, Callable[[Any, Action], None]] = {op: getattr(self, f"_{name}") for op, name in DO.items()}

    def run(self, program: Program, rank: int, rows: Sequence[int], fill: Fill, scale: Callable[[int], float], clock: int) -> None:
        """Run `rank`'s part of a program whose microbatches have so many `rows`; `fill(held, item, step)` gives a step what is no neighbour's, and with
        a fourth argument, true, what a step needs of that when it is gone through again.

        Gradients are those of the losses of each item times `scale(item)`.
        """
        self.rows, self.fill, self.scale, self.clock = rows, fill, scale, clock
        for held in self.held.values():
            held.n_summed = held.n_updated = 0
            held.expect(len(rows), trains=True)
        do, all_held = self.do, self.held
        for action in program.lists[rank]:
            if self.trace is None or action[1] not in TOLD:
                do[action[1]](all_held.get(action[0]), action)
                continue
            began = clock_now()
            do[action[1]](all_held.get(action[0]), action)
            noted(self.trace, action, began, clock_now() - began, clock)

    def _version(self, held: Held, action: Action) -> None:
        held.reads[action.item] = self.updates.version(held, action)

    def _forward(self, held: Held, action: Action) -> None:
        item = action.item
        held.claim(item, back=False)
        step = held.step(item, self.rows[item])  # made the first time, all ranks of a stage together: no compute
        began = self._begin(held, item)
        self.fill(held, item, step)
        step.go()
        if held.stage.is_last:
            self.losses[item] = step.lose(self.scale(item))
        self.n_computed[held.number] += 1
        self._timed(held, action, began)

    def _backward(self, held: Held, action: Action) -> None:
        self._back(held, action, lambda step: step.go_back())
        self._summed(held, action.item, held.both)

    def _input_gradient(self, held: Held, action: Action) -> None:
        self._back(held, action, lambda step: step.go_back_to_input())
        held.add(action.item, held.early)

    def _back(self, held: Held, action: Action, go: Callable[[Step | OnDevice], None]) -> None:
        item = action.item
        held.claim(item, back=True)
        step = held.step(item, self.rows[item])
        began = self._begin(held, item)
        if held.recomputes:
            self.fill(held, item, step, True)
            step.go()
            if held.stage.is_last:
                step.lose(self.scale(item))
        go(step)
        self._timed(held, action, began)

    def _weight_gradient(self, held: Held, action: Action) -> None:
        step = held.step(action.item, self.rows[action.item])
        began = self._begin(held, action.item)
        step.go_back_to_weights()
        self._timed(held, action, began)
        self._summed(held, action.item, held.late)

    def _summed(self, held: Held, item: int, parts: Sequence[slice]) -> None:
        held.add(item, parts)
        held.n_summed += 1
        held.done(item, len(self.rows), trains=True)
        if held.stage.is_last:
            self.lost(item, self.losses.pop(item))

    def _begin(self, held: Held, item: int) -> tuple[float, float]:
        """Begin a compute; return the time, and what of it was spent without computing until now."""
        self.waiting.meanwhile()
        self.slow.begin(self.clock + item // held.every)
        return clock_now(), self.waiting.away_seconds

    def _timed(self, held: Held, action: Action, began: tuple[float, float]) -> None:
        self.slow.end()
        since, away = began[0], self.waiting.away_seconds - began[1]
        seconds = clock_now() - since
        self.compute_seconds[held.number] += seconds - away
        if self.trace is not None:
            noted(self.trace, action, since, seconds, self.clock, self.updates.told(held, action.item))

    def _receive(self, held: Held, action: Action) -> None:
        held.taken.take(action.item)

    def _receive_back(self, held: Held, action: Action) -> None:
        held.taken_back.take(action.item)

    def _send(self, held: Held, action: Action) -> None:
        held.given.send(action.item, self.rows[action.item])

    def _send_back(self, held: Held, action: Action) -> None:
        held.given_back.send(action.item, self.rows[action.item])

    def _sum(self, held: Held, action: Action) -> None:
        self.updates.start(held)

    def _update(self, held: Held, action: Action) -> None:
        began, before = clock_now(), self.waiting.away_seconds
        self.updates.finish(held, held.n_summed - 1)
        held.n_updated += 1
        self.update_seconds += clock_now() - began - (self.waiting.away_seconds - before)

    def _all_wait(self, held: Held, action: Action) -> None:
        self.updates.meet()


DO = {
    "F": "forward", "B": "backward", "I": "input_gradient", "W": "weight_gradient", "RF": "receive", "SF": "send", "RB": "receive_back", "SB": "send_back",
    "V": "version", "G": "sum", "U": "update", "X": "all_wait",
}  # fmt: skip
"""What runs each action."""
CODES = {op: KINDS.index(kind) for op, kind in TRACED.items()}
TOLD = TRACED.keys() - COMPUTE
"""What the trace tells of from begin to end; computes tell of themselves, without what they waited for before."""


def noted(trace: Any, action: Action, began: float, seconds: float, clock: int = -1, version: int = -1) -> None:
    """Let a trace tell of an action."""
    trace.add(CODES[action.op], began, seconds, clock, stage=action.stage, item=action.item, version=version)


def outputs(held: Sequence[Held], sizes: Sequence[int], fill: Callable[[int, Array], None], trace: Any = None) -> Iterator[tuple[int, list[Array]]]:
    """Yield of each block of rows its number and the outputs of the heads, where the last stage lives, and nothing elsewhere: forward alone, dropout off.

    `held`: this rank's stages in their order; `fill(block, x)` gives the first stage its rows. With one stage a rank it is the schedule `inference`, and so the
    `trace`, if there is one, tells of it, without a clock.
    """

    def told(op: str, own: Held, block: int, began: float) -> None:
        if trace is not None:
            noted(trace, Action(own.number, op, block), began, clock_now() - began)

    for own in held:
        own.expect(len(sizes), trains=False)
        own.stage.bring(own.weights(), own.scored)
    for block, rows in enumerate(sizes):
        if not held[0].has(block):
            continue
        for own in held:
            edges, w = own.edges(block, rows), own.weights()
            assert edges.x is not None
            began = clock_now()
            if own.taken is not None:
                own.taken.take(block)
                told("RF", own, block, began)
            else:
                fill(block, edges.x)
            own.claim(block, back=False)
            thunks, outs = own.scoring(block, rows, w, edges)
            began = clock_now()
            for function, arguments in thunks:
                function(*arguments)
            told("F", own, block, began)
            if own.stage.is_last:
                yield block, outs
            else:
                began = clock_now()
                own.given.send(block, rows)
                told("SF", own, block, began)
            own.done(block, len(sizes), trains=False)
