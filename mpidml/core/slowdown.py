"""Slow workers down on purpose, by a seeded pattern: the same pattern sleeps in a real run and stretches virtual clocks.

`exponential:f`  every compute is stretched by a draw with mean f (transient jitter)
`rotating:f`     one worker at a time is f times slower, for 20 clocks, then the next
`permanent:f`    worker 0 is f times slower for ever

Of a network that is cut into stages, each rank of the grid is such a worker, and sleeps after each compute.
"""

from __future__ import annotations

from array import array

from mpidml.core import rng
from mpidml.core.errors import UserError, nearest

PATTERNS = ("exponential", "rotating", "permanent")
PHASE_CLOCKS = 20
DRAWN_CLOCKS = 16
DRAWN_NBYTES = 450
"""Memory that the draws of a worker take."""


class Slowdown:
    """`extra(worker, clock)` = how many times its own length a compute is prolonged by (0 = not at all)."""

    def __init__(self, text: str, n_workers: int, seed: int) -> None:
        name, _, factor = text.partition(":")
        if name not in PATTERNS:
            raise UserError(f"--slowdown {text}: there is no pattern '{name}'; {nearest(name, PATTERNS)}")
        try:
            self.factor = float(factor or 2)
        except ValueError:
            raise UserError(f"--slowdown {text}: '{factor}' is not a number; write for example {name}:2") from None
        least = 0 if name == "exponential" else 1
        if not least <= self.factor < 1e6:
            raise UserError(f"--slowdown {text}: the factor {factor} is out of range; give a number from {least} up")
        self.name, self.n_workers, self.seed = name, n_workers, seed
        self.drawn: dict[int, tuple[int, array[float]]] = {}  # of each worker the last draws, which lie side by side

    def lasting(self) -> Slowdown | None:
        """Return what of it makes workers unlike for the whole run: nothing of one that goes round, or is drawn, which each has as much of as the others."""
        return self if self.name == "permanent" else None

    def extra(self, worker: int, clock: int) -> float:
        """Return the prolongation of one compute, a function of (seed, worker, clock) alone. Cost: a generator each DRAWN_CLOCKS clocks of a worker, upwards."""
        if self.name == "exponential":
            block, place = divmod(clock, DRAWN_CLOCKS)
            found = self.drawn.get(worker)
            if found is None or found[0] != block:
                drawn = rng.stream(self.seed, "slowdown", worker, block).exponential(self.factor, DRAWN_CLOCKS)
                found = self.drawn[worker] = block, array("d", drawn.tobytes())
            return found[1][place]
        slow = 0 if self.name == "permanent" else clock // PHASE_CLOCKS % self.n_workers
        return self.factor - 1 if worker == slow else 0.0
