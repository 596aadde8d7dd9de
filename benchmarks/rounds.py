"""Compare variants in interleaved rounds: each round measures every variant once, and ratios are taken within a round.

    round 1   A B C     A machine whose speed drifts hits all variants of a round alike: the median of B/A over
    round 2   A B C     the rounds keeps its meaning where the quotient of two separate medians has lost it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

QUIET = 0.12  # of a core: a round in which other processes took less of it counts as quiet


class Sample(NamedTuple):
    """One measurement: seconds a unit of work, what other processes took meanwhile (cores), and anything else that is worth a median."""

    seconds: float
    others: float = 0.0
    extra: Mapping[str, Any] = {}


class Rounds:
    """The samples of all variants; `samples[name][r]` is that of round r."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}

    def add(self, name: str, sample: Sample) -> None:
        """Note the next round's sample of a variant."""
        self.samples.setdefault(name, []).append(sample)

    def median(self, name: str) -> float:
        """Return the median seconds."""
        return median(s.seconds for s in self.samples[name])

    def least(self, name: str) -> float:
        """Return the smallest seconds: the least disturbed round."""
        return min(s.seconds for s in self.samples[name])

    def others(self, name: str) -> float:
        """Return the median share of other processes, in cores."""
        return median(s.others for s in self.samples[name])

    def extra(self, name: str, key: str) -> float:
        """Return the median of one further measurement."""
        return float(median(s.extra[key] for s in self.samples[name]))

    def extra_ratio(self, name: str, base: str, key: str) -> float:
        """Return the median over the rounds of a further measurement of `name` over that of `base`."""
        return float(median(a.extra[key] / b.extra[key] for a, b in zip(self.samples[name], self.samples[base], strict=True)))

    def ratios(self, name: str, base: str, quiet: bool = False) -> list[float]:
        """Return seconds of `name` over seconds of `base`, round by round; `quiet`: of those rounds only in which both were left alone."""
        pairs = zip(self.samples[name], self.samples[base], strict=True)
        return [a.seconds / b.seconds for a, b in pairs if not quiet or max(a.others, b.others) < QUIET]

    def ratio(self, name: str, base: str) -> float:
        """Return the median of the ratios."""
        return median(self.ratios(name, base))


def interleave(variants: Mapping[str, Callable[[], Sample]], n_rounds: int) -> Rounds:
    """Measure every variant once a round, in the order given."""
    rounds = Rounds()
    for _ in range(n_rounds):
        for name, measure in variants.items():
            rounds.add(name, measure())
    return rounds


class Child:
    """A process that answers questions, one JSON line each; it sleeps while others are measured."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = " ".join(command)
        self.process = subprocess.Popen(list(command), env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **question: Any) -> dict[str, Any]:
        """Return the answer; RuntimeError if the process has ended instead."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}; its message stands above")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process by ending its input."""
        self.process.communicate()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Be the other side of `Child`: answer questions until there are no more."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
