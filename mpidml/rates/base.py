"""Say by what the learning rate is multiplied as a run goes on: a product of factors, joined by `+`.

    --lr 0.1 --lr-policy warmup:100+cosine        rate(it) = 0.1 * min(1, (it + 1) / 100) * (1 + cos(pi it / max)) / 2

`it` is the number of the global batch, 0, 1, 2, ...: the clock of one worker that computes them all. It is never the number of updates, of which an
asynchronous server makes one for each worker's share, nor the count of one worker, which with `--assign dynamic` takes as many shares as it can.
`max` is how many global batches the run has. The names and their formulas are those of Caffe (Jia et al., ACM Multimedia 2014).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar

from mpidml.core import plugins
from mpidml.core.errors import UserError

CONSTANT = "constant"


def whole(name: str, value: object, least: int) -> int:
    """Return an argument that must be a whole number from `least` up; ValueError names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} = {value} is not a whole number from {least} up; give one that is")
    return value


def between(name: str, value: object, least: float = 0.0, most: float = 1.0) -> float:
    """Return an argument that must be a number from `least` to `most`; ValueError names it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or value == math.inf:
        raise ValueError(f"{name} = {value} is not a number from {least:g} to {most:g}; give one that is")
    return float(value)


class Factor:
    """One factor of a learning rate, a pure function of the number of the global batch, from 0 to 1.

    `spans`: it takes the whole run, `clocks` global batches (0: as many as the run turns out to have, which `Rates.span` says).
    """

    spans: ClassVar[bool] = False
    clocks = 0

    def at(self, it: int) -> float:
        """Return the factor at the global batch `it`."""
        raise NotImplementedError

    def done(self, it: int) -> float:
        """Return which share of the span is over at `it`, 1 after its end."""
        return min(it / self.clocks, 1.0)

    def words(self) -> str:
        """Say in a few words what it does."""
        raise NotImplementedError


class Rates:
    """The product of `factors`."""

    def __init__(self, factors: Sequence[Factor]) -> None:
        self.factors = tuple(factors)
        self.needs_end = any(factor.spans and not factor.clocks for factor in self.factors)

    def span(self, n_clocks: int) -> None:
        """Learn how many global batches the run has."""
        for factor in self.factors:
            if factor.spans and not factor.clocks:
                factor.clocks = n_clocks

    def __call__(self, it: int) -> float:
        """Return what the learning rate is multiplied by at the global batch `it`."""
        product = 1.0
        for factor in self.factors:
            product *= factor.at(it)
        return product

    def words(self, rate: float, n_clocks: int) -> str:
        """Say what becomes of a learning rate; `n_clocks` 0: nobody knows how long."""
        said = ", ".join(factor.words() for factor in self.factors)
        moments = {"at first": 0} | ({"half way": n_clocks // 2, "at last": n_clocks - 1} if n_clocks > 2 else {})
        return f"{said} ({', '.join(f'{rate * self(it):.3g} {when}' for when, it in moments.items())})"


def make_rates(text: str, seconds: float = 0.0) -> Rates | None:
    """Parse factors joined by `+`, as in "warmup:100+cosine"; None for a rate that stays. UserError where a run of so many `seconds` has no known end."""
    parts = [part.strip() for part in re.split(r"(?<!\d[eE])\+", text)]
    if not all(parts):
        raise UserError(f"--lr-policy '{text}': a factor is missing{' beside a +' * (len(parts) > 1)}; give names, as in warmup:100+cosine")
    factors = [plugins.make("mpidml.rates", part) for part in parts]
    for part, factor in zip(parts, factors, strict=True):
        if not isinstance(factor, Factor):
            raise UserError(f"--lr-policy {part}: {type(factor).__name__} is not a factor; derive it from mpidml.rates.base.Factor")
        if len(parts) > 1 and part == CONSTANT:
            raise UserError(f"--lr-policy {text}: {CONSTANT} does nothing beside others; leave it out")
    rates = Rates(factors)
    if seconds and rates.needs_end:
        raise UserError(
            f"--lr-policy {text}: takes the whole run, and nobody knows how many clocks --seconds {seconds:g} has; "
            "give --steps or --epochs besides, or its own clocks as in poly:clocks=5000"
        )
    return None if parts == [CONSTANT] else rates
