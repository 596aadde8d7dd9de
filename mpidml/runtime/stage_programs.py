"""Make and prove all programs of a run before it trains: what is kept at once has room for each of them.

    spans -> lengths -> program of each -> its replay -> slots of activations, versions of weights, the oldest weights that are read
"""

from __future__ import annotations

from typing import Any

from mpidml.core.errors import UserError
from mpidml.core.lowering import late_reads
from mpidml.core.program import Program
from mpidml.core.spans import Spans

MOST_ITEMS, LEAST_CLOCKS = 64, 4
"""A program without a flush is of so many microbatches at most, and of so many clocks at least: in one clock alone no weights would be old."""


def spans(strategy: Any) -> Spans:
    """Return of how many clocks programs are: of one, or without a flush of many, to the end of an epoch or where the run is saved."""
    if not strategy.every:
        return Spans(1, (1,))
    saved = strategy.job.checkpoint_every
    return Spans(max(LEAST_CLOCKS, MOST_ITEMS // strategy.n_items), (strategy.sampler.clocks_per_epoch, *[saved] * bool(saved)))


class Programs:
    """The programs of a `strategy` that is cut, by their number of clocks; of each stage `activations`, `versions` and what is `sent`, as in a replay, the
    most that one of them has at once.

    UserError shows what in one of them cannot be done.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy, self.spans = strategy, strategy.spans()
        self.made: dict[int, tuple[Program, list[int]]] = {}
        self.activations, self.versions, self.sent = ([0] * strategy.n_stages for _ in range(3))
        for n in sorted(self.spans.every(strategy.n_clocks)):
            self.activations, self.versions, self.sent = self._with(n)

    def _with(self, n: int) -> tuple[list[int], ...]:
        """Make and prove the program of `n` clocks; return of each stage what it keeps, or what those before it do where that is more."""
        program, run = self.strategy.checked(n)
        self.made[n] = program, late_reads(program, self.strategy.n_items)
        return tuple(list(map(max, before, own)) for before, own in ((self.activations, run.activations), (self.versions, run.versions), (self.sent, run.sent)))

    def go_on(self, clock: int, end: int) -> None:
        """Prove the programs up to the next cut, where a run goes on at a clock at which one that begins has no program; UserError where they need more."""
        for n in sorted(self.spans.within(self.spans.room(clock, end)) - self.made.keys()):
            if self._with(n) != (self.activations, self.versions, self.sent):
                raise UserError(
                    f"--schedule {self.strategy.job.schedule}: {n} clocks, with which this run goes on, keep more activations or weights than longer programs,"
                    " or send more at once; let it keep no more where there are fewer microbatches"
                )

    @property
    def oldest(self) -> int:
        """Return how many updates old the weights are at most that a microbatch reads."""
        return max(max(late) for _, late in self.made.values())
