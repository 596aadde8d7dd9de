"""Cut a chain of layers over the stages of a pipeline so that the slowest stage or link, which all others wait for, is as fast as can be.

layers     | 1  2  3 |  4  5  | 6 |         stage    compute, forward and backward, of its layers
ranks      | 0  1  2 |   3    | 4 |         link     what goes forward and what comes back, between two stages
stage           0         1     2           `balanced`: one rank each; `planned`: as many as pays, which take turns

What a plan is good for: seconds per microbatch once the pipeline is full. Sums are rounded once, so that equal stages tie whatever they are made of.
Sources: Narayanan et al. 2019 (PipeDream, SOSP: planner, turns, what is in flight); Harlap et al. 2018 (its earlier form: the bytes of a sum).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from mpidml.core.errors import UserError

Array = np.ndarray[Any, Any]


COPIES = 4
"""Of parameters in a rank's memory: they, their gradient, that of one microbatch, and an optimizer's state."""


class Profile(NamedTuple):
    """What one layer costs for one microbatch: seconds, bytes of its output (its gradient, which comes back, has as many), of its parameters."""

    forward_seconds: float
    backward_seconds: float
    activation_nbytes: float
    parameter_nbytes: float


class Stage(NamedTuple):
    """Layers [lo, hi) on `replicas` ranks, each of which has all of them; none where lo == hi."""

    lo: int
    hi: int
    replicas: int = 1


class Plan(NamedTuple):
    """A cut and what it costs: `seconds` per microbatch of the slowest, which is stage `number`, or the link behind it; `sentence` says so."""

    stages: tuple[Stage, ...]
    seconds: float
    slowest: Literal["stage", "link"]
    number: int
    sentence: str

    @property
    def n_in_flight(self) -> int:
        """Return how many microbatches keep all ranks busy, for each replica of the first stage: ceil(ranks / these replicas) (NOAM in PipeDream)."""
        return -(-sum(stage.replicas for stage in self.stages) // self.stages[0].replicas)


def by_memory(profiles: Sequence[Profile]) -> list[Profile]:
    """Return profiles by which a cut evens out memory in place of seconds: copies of parameters, and outputs."""
    return [each._replace(forward_seconds=COPIES * each.parameter_nbytes + each.activation_nbytes, backward_seconds=0.0) for each in profiles]


def balanced(
    profiles: Sequence[Profile],
    n_stages: int,
    bytes_per_second: float,
    memory_nbytes: float | None = None,
    in_flight: Callable[[int], int] | None = None,
    optimizer_factor: float = 0.0,
    speeds: Sequence[float] = (),
) -> Plan:
    """Return the fastest cut into `n_stages` stages of one rank each; among equally fast ones that whose first stage ends earliest, then the second.

    No stage is empty where there are layers enough. Otherwise each layer has its own, and the empty ones, which only pass on, stand right behind
    the first: it has layers and takes the samples, the last has layers and computes the loss (a single layer is the first stage's), and the rest
    stand late, where least is in flight. `bytes_per_second` 0: links take no time. With `memory_nbytes` a rank's parameters, gradient, optimizer
    state (`optimizer_factor` bytes per byte of parameters: momentum 1, adam 2) and outputs of all layers for `in_flight(stage)` microbatches fit
    into it; without `in_flight` these are n_stages - stage, as with one forward, one backward. `speeds`: of each stage's rank; one of speed 0.5
    computes twice as long as the profile says. Costs O(layers^2 stages).
    UserError where nothing fits, or the numbers are none.
    """
    chain = _chain(profiles, n_stages, bytes_per_second)
    n_full, paces = min(n_stages, len(profiles)), _paces(speeds, n_stages)

    def flights(left: int, replicas: int) -> int:
        stage = 0 if left == n_full else n_stages - left
        return in_flight(stage) if in_flight else n_stages - stage

    def nbytes(left: int, replicas: int) -> Array:
        return chain.nbytes(flights(left, replicas), 1, optimizer_factor)

    own = [1.0, *reversed(paces[n_stages - n_full + 1 :]), paces[0]]  # by the full stages from one to the end
    first, *rest = _fastest(chain, n_full, 1, nbytes, memory_nbytes, own)
    return _priced(chain, (first, *[Stage(first.hi, first.hi)] * (n_stages - n_full), *rest), paces)


def planned(
    profiles: Sequence[Profile],
    n_ranks: int,
    bytes_per_second: float,
    memory_nbytes: float | None = None,
    optimizer_factor: float = 0.0,
    every: int = 1,
    most: int = 0,
) -> Plan:
    """Return the fastest cut into any number of stages, on any number of ranks each, that takes all ranks: PipeDream's planner.

    Layers i to j on r ranks take T(i, j, r) = max(compute(i..j), 4 (r - 1) / r x bytes of parameters(i..j) / bandwidth) / r seconds per microbatch:
    during r T the ranks finish r microbatches side by side and sum their gradients once, overlapped with compute. 4 (r - 1) / r: with each rank the
    server of 1 / r of the parameters, (r - 1) / r of their bytes leave a rank and as many come to it as gradients, and the same again as weights;
    likewise a link's 2 x activation counts what goes forward and what comes back. Then
    A(j, R) = min over i, r of max(A(i, R - r), 2 activation(i) / bandwidth, T(i + 1, j, r)).

    With a flush they sum once for the `every` microbatches of a batch, if these are more than r. No stage is on more ranks than `most` (0: than there are).

    One stage on all ranks is data parallelism, one rank for each stage a straight pipeline. Among equally fast ones the fewest stages, then, stage by
    stage from the first, the earliest end and the most replicas. `bytes_per_second` 0: nothing that travels takes time. With `memory_nbytes`
    each rank fits: what `balanced` counts, for ceil(ranks from its stage on / replicas) microbatches in flight, each with its own version of the
    parameters (weight stashing). Costs O(layers^2 ranks^2), in whole arrays. UserError where nothing fits, or the numbers are none.
    """
    chain = _chain(profiles, n_ranks, bytes_per_second)._replace(every=every)

    def nbytes(left: int, replicas: int) -> Array:
        n_in_flight = -(-left // replicas)
        return chain.nbytes(n_in_flight, n_in_flight, optimizer_factor)

    return _priced(chain, _fastest(chain, n_ranks, most or n_ranks, nbytes, memory_nbytes, _paces((), n_ranks + 1)), _paces((), n_ranks))


def priced(profiles: Sequence[Profile], stages: Sequence[Stage], bytes_per_second: float, speeds: Sequence[float] = ()) -> Plan:
    """Return any cut, as one that `by_hand` read, with what it costs at these `speeds`; the earliest of equally slow ones is named.

    A link carries the output of the last layer before it, also from and to empty stages; what the first layer takes in has no known size and costs
    nothing. Between replicated stages it costs no less, as in the paper. UserError where the numbers are none.
    """
    return _priced(_chain(profiles, len(stages), bytes_per_second), tuple(stages), _paces(speeds, len(stages)))


def route(minibatch: int, replicas: int) -> int:
    """Return the replica of a stage that a minibatch goes to, backward as forward, so that its weights and activations are there: turns (1F1B-RR)."""
    return minibatch % replicas


def by_hand(text: str, n_layers: int, n_stages: int) -> tuple[Stage, ...]:
    """Read the layers of each stage, as `3,2,4`; 0 is a stage without layers. UserError where it is not a partition of so many layers and stages."""
    where, counts = f"--partition {text}", []
    for word in map(str.strip, text.split(",")):
        try:
            counts.append(int(word))
        except ValueError:
            raise UserError(f"{where}: '{word}' is not a number of layers; give whole numbers from 0 up, as 3,2,4") from None
        if counts[-1] < 0:
            raise UserError(f"{where}: '{word}' is negative; give 0 for a stage without layers")
    if len(counts) != n_stages:
        raise UserError(f"{where}: has {len(counts)} number(s), there are {n_stages} stages; give one for each, joined by commas")
    edges = [0, *accumulate(counts)]
    if edges[-1] != n_layers:
        raise UserError(f"{where}: its layers add up to {edges[-1]}, the net has {n_layers}; give numbers that add up to {n_layers}")
    return tuple(Stage(lo, hi) for lo, hi in pairwise(edges))


class _Chain(NamedTuple):
    """Sums over layers [lo, hi) at [lo, hi], 0 for hi <= lo; at [hi] the seconds of a link behind layer hi - 1, 0 where no layer is before it."""

    compute: Array
    activations: Array
    parameters: Array
    link: Array
    bytes_per_second: float
    every: int = 1

    def sync(self, replicas: int) -> Array:
        """Return the seconds per microbatch of the sum over replicas, 4 (r - 1) / r^2 x bytes / bandwidth, or less often: one division, one rounding."""
        if not self.bytes_per_second:
            return np.zeros_like(self.parameters)
        seconds: Array = 4 * (replicas - 1) * self.parameters / (replicas * max(replicas, self.every) * self.bytes_per_second)
        return seconds

    def nbytes(self, n_in_flight: int, n_versions: int, optimizer_factor: float) -> Array:
        """Return the bytes that a rank holds: versions of the parameters, one gradient, optimizer state, and outputs of what is in flight."""
        total: Array = self.parameters * (n_versions + 1 + optimizer_factor) + n_in_flight * self.activations
        return total


def _chain(profiles: Sequence[Profile], n_stages: int, bytes_per_second: float) -> _Chain:
    if not profiles:
        raise UserError("stages: the net has 0 layers, a cut needs 1; give a net with layers")
    if n_stages < 1:
        raise UserError(f"stages: {n_stages} are none; give 1 or more")
    if not (math.isfinite(bytes_per_second) and bytes_per_second >= 0):
        raise UserError(f"stages: bytes_per_second {bytes_per_second} is not a number from 0 up; give one")
    for number, profile in enumerate(profiles, 1):
        for name, value in profile._asdict().items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"profile: layer {number}: {name} {value} is not a number from 0 up; measure it again")
    exact = [[Fraction(value) for value in profile] for profile in profiles]
    compute, activations, parameters = (_sums(values) for values in ([e[0] + e[1] for e in exact], [e[2] for e in exact], [e[3] for e in exact]))
    link = np.zeros(len(profiles) + 1)
    if bytes_per_second:
        link[1:] = [2 * profile.activation_nbytes / bytes_per_second for profile in profiles]
    return _Chain(compute, activations, parameters, link, bytes_per_second)


def _paces(speeds: Sequence[float], n_stages: int) -> list[float]:
    """Return the speed of each stage, 1 where none are given."""
    if speeds and (len(speeds) != n_stages or not all(0 < speed < math.inf for speed in speeds)):
        raise UserError(f"stages: {', '.join(f'{speed:g}' for speed in speeds)} are not the speeds of {n_stages} stages; give each one above 0")
    return list(speeds) or [1.0] * n_stages


def _sums(values: Sequence[Fraction]) -> Array:
    edges, sums = [Fraction(0), *accumulate(values)], np.zeros((len(values) + 1,) * 2)
    for lo, before in enumerate(edges):
        for hi in range(lo + 1, len(edges)):
            sums[lo, hi] = float(edges[hi] - before)
    return sums


Cost = Callable[[int, int], Array]
"""For a stage of r ranks, `left` ranks from it to the end, what it costs with layers [lo, hi), at [lo, hi]: cost(left, r)."""


def _fastest(chain: _Chain, n_ranks: int, most: int, nbytes: Cost, limit: float | None, paces: Sequence[float]) -> tuple[Stage, ...]:
    """Return the stages, none empty, whose slowest is fastest among those that fit, ties as `planned` says; paces[left]: their ranks' speed."""
    n = len(chain.link) - 1
    absent = np.where(np.tri(n + 1, dtype=bool), np.inf, 0.0)
    behind = np.append(chain.link[:-1], 0.0)

    @cache
    def free(r: int, pace: float) -> Array:
        seconds: Array = np.maximum(np.maximum(chain.compute / r / pace, chain.sync(r)), behind) + absent
        return seconds

    def seconds(left: int, r: int) -> Array:
        found = free(r, paces[left])
        return found if limit is None else np.where(nbytes(left, r) <= limit, found, np.inf)

    best = _levels(seconds, np.maximum, n, n_ranks, most)[n_ranks][0]
    if np.isinf(best):
        least = _levels(lambda left, r: nbytes(left, r) + absent, np.maximum, n, n_ranks, most)[n_ranks][0]
        raise UserError(
            f"stages: {n} layers on {n_ranks} ranks need {math.ceil(least)} bytes on the fullest rank, a rank has {limit}; "
            "use more ranks, smaller microbatches, or an optimizer with less state"
        )

    def one(left: int, r: int) -> Array:
        return np.where(seconds(left, r) <= best, 1.0, np.inf)

    counts = _levels(one, np.add, n, n_ranks, most)
    stages, lo, left = list[Stage](), 0, n_ranks
    while lo < n:
        every = [(r, np.flatnonzero(one(left, r)[lo] + counts[left - r] == counts[left][lo])) for r in range(min(left, most), 0, -1)]
        hi, r = min(((int(ends[0]), r) for r, ends in every if len(ends)), key=lambda choice: choice[0])
        stages.append(Stage(lo, hi, r))
        lo, left = hi, left - r
    return tuple(stages)


def _levels(cost: Cost, join: Callable[[Array, Array], Array], n_layers: int, n_ranks: int, most: int) -> list[Array]:
    """Return at [R][lo] the least cost of layers from lo on over R ranks, at most `most` a stage; a stage's is joined to that of those behind it.

    It is the paper's recurrence from the other end: ranks from a stage to the end say how much is in flight there.
    """
    levels = [np.full(n_layers + 1, np.inf)]
    levels[0][n_layers] = 0.0
    for left in range(1, n_ranks + 1):
        choices = [join(cost(left, r), levels[left - r]).min(axis=1) for r in range(1, min(left, most) + 1)]
        levels.append(np.min(choices, axis=0))
    return levels


def _priced(chain: _Chain, stages: tuple[Stage, ...], paces: Sequence[float]) -> Plan:
    found: list[tuple[float, Literal["stage", "link"], int, str]] = []
    for k, (lo, hi, r) in enumerate(stages):
        compute, sync = float(chain.compute[lo, hi]) / r / paces[k], float(chain.sync(r)[lo, hi])
        seconds, nbytes = max(compute, sync), float(chain.parameters[lo, hi])
        why = "of compute per microbatch" if compute >= sync else f"per microbatch for the sum of {nbytes:.0f} bytes of gradients"
        found.append((seconds, "stage", k, f"{_named(k, stages[k], len(chain.link) - 1)} is the slowest: {seconds:.3g} s {why}"))
        if k + 1 < len(stages):
            seconds, each = float(chain.link[hi]), float(chain.activations[hi - 1, hi]) if hi else 0.0
            why = f"per microbatch for {each:.0f} bytes forward and as many back"
            found.append((seconds, "link", k, f"the link from stage {k} to stage {k + 1} is the slowest: {seconds:.3g} s {why}"))
    return Plan(stages, *max(found, key=lambda each: each[0]))


def _named(number: int, stage: Stage, n_layers: int) -> str:
    lo, hi, replicas = stage
    layers = f"layer {hi} of {n_layers}" if hi - lo == 1 else f"layers {lo + 1} to {hi} of {n_layers}" if hi > lo else "no layers"
    return f"stage {number} ({layers}, on {replicas} rank{'s' if replicas > 1 else ''})"
