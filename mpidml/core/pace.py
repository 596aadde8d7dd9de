"""Turn the speeds of single ranks into what a cut is made by: the speed of each stage, and the parts that the ranks of one stage get.

    speeds of ranks      data 0:  1   1/3       the slow rank holds up its replica, and the replica the others, with which it sums gradients
                         data 1:  1   1
    speeds of stages              1   1/3
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from mpidml.core.balance import Plan, Profile, balanced
from mpidml.core.grid import ProcessGrid

ALIKE = 1.25
"""Ranks that take so many times as long as the fastest count as equally fast: what is measured in so short a time differs as much."""


def relative(seconds: Sequence[float], alike: float = ALIKE) -> list[float]:
    """Return the speed of each rank, 1 for the fastest and those that are `alike`, by the seconds that each took for the same."""
    fastest = min(seconds)
    return [1.0 if each <= alike * fastest else fastest / each for each in seconds]


def part_weights(grid: ProcessGrid, speeds: Sequence[float]) -> tuple[float, ...]:
    """Return in which proportion widths are cut over the tensor axis, by the slowest rank of each place on it."""
    data, pipe, tensor = grid.sizes.values()
    return tuple(min(speeds[grid.rank(data=d, pipe=p, tensor=t)] for d, p in product(range(data), range(pipe))) for t in range(tensor))


def stage_speeds(grid: ProcessGrid, speeds: Sequence[float], weights: Sequence[float], n_stages: int) -> list[float]:
    """Return the speed of each stage: of the rank that ends last, each with its part of the widths, in the slowest of its replicas; of those by turns, all."""
    pipe, tensor = grid.sizes["pipe"], grid.sizes["tensor"]
    shares = [weight * tensor / sum(weights) for weight in weights]
    found = []
    for s in range(n_stages):
        ranks = [(rank, shares[grid.coords(rank)["tensor"]]) for rank in grid.ranks(s % pipe)]
        found.append(grid.turn(ranks[0][0])[1] / max(share / speeds[rank] for rank, share in ranks))
    return found


def paced(profiles: Sequence[Profile], grid: ProcessGrid, speeds: Sequence[float], n_stages: int) -> tuple[Plan, tuple[float, ...]]:
    """Return the fastest cut on ranks of such speeds, and the proportion of the parts: equal ones, unless others are faster."""
    plans = []
    for weights in dict.fromkeys(((1.0,) * grid.sizes["tensor"], part_weights(grid, speeds))):
        plans.append((balanced(profiles, n_stages, 0.0, speeds=stage_speeds(grid, speeds, weights, n_stages)), weights))
    return min(plans, key=lambda found: found[0].seconds)
