"""Number ranks on a grid of named axes: pure arithmetic, and what a user writes for it.

    data=2,pipe=2      rank 0  data 0 pipe 0     rank 1  data 0 pipe 1        the last axis varies fastest, so that its ranks are neighbours
                       rank 2  data 1 pipe 0     rank 3  data 1 pipe 1
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from mpidml.core.errors import UserError, nearest

AXES = ("data", "pipe", "tensor")
"""Replicas that share a batch, stages of a pipeline, parts of a layer."""


class ProcessGrid:
    """`sizes[axis]` ranks along each of AXES; rank = ((data * pipe) ... ) with the last axis fastest."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = {axis: sizes.get(axis, 1) for axis in AXES}
        self.n_ranks = prod(self.sizes.values())

    def rank(self, **at: int) -> int:
        """Return the rank at the given coordinates, 0 on an axis that is not named."""
        rank = 0
        for axis, size in self.sizes.items():
            rank = rank * size + at.get(axis, 0)
        return rank

    def coords(self, rank: int) -> dict[str, int]:
        """Return a rank's coordinate on each axis."""
        found = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, self.sizes[axis])
        return {axis: found[axis] for axis in AXES}

    def line(self, axis: str, rank: int) -> list[int]:
        """Return the ranks that differ from `rank` on `axis` alone, in order, with itself."""
        at = self.coords(rank)
        return [self.rank(**{**at, axis: i}) for i in range(self.sizes[axis])]

    def ranks(self, stage: int) -> list[int]:
        """Return the ranks at a place of the pipe."""
        return [self.rank(data=d, pipe=stage, tensor=t) for d in range(self.sizes["data"]) for t in range(self.sizes["tensor"])]

    def turn(self, rank: int) -> tuple[int, int]:
        """Return which turn a rank takes of how many at its stage: the only one."""
        return 0, 1

    def ways(self, a: Mapping[str, int], b: Mapping[str, int]) -> list[tuple[int, int]]:
        """Return from which rank to which microbatch after microbatch goes, over and over, between two places that differ on the pipe."""
        return [(self.rank(**a), self.rank(**b))]

    def name(self, rank: int) -> str:
        """Name a rank by its coordinates on the axes that have more than one rank."""
        return " ".join(f"{axis} {i}" for axis, i in self.coords(rank).items() if self.sizes[axis] > 1) or "alone"

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items() if size > 1) or "data=1"


def n_ranks_of(word: str) -> int | None:
    """Read a number of ranks, None where it is none: of more than nine digits there never are so many."""
    return int(word) if word.isdecimal() and len(word) <= 9 else None


def parse_grid(text: str, n_ranks: int, where: str = "--grid") -> ProcessGrid:
    """Return the grid that `text` describes for `n_ranks`; an axis of size 0 takes what the others leave. UserError where it does not fit."""
    sizes: dict[str, int] = {}
    for word in text.split(","):
        axis, equals, size = (part.strip() for part in word.partition("="))
        if axis not in AXES:
            raise UserError(f"{where} {text}: there is no axis '{axis}'; {nearest(axis, AXES)}")
        if not equals or (number := n_ranks_of(size)) is None:
            raise UserError(f"{where} {text}: '{word.strip()}' gives no number of ranks; write {axis}=2")
        if axis in sizes:
            raise UserError(f"{where} {text}: names {axis} twice; give it once")
        sizes[axis] = number
    rest = [axis for axis, size in sizes.items() if size == 0]
    given = prod(size for size in sizes.values() if size)
    if len(rest) == 1 and n_ranks % given == 0:
        sizes[rest[0]] = n_ranks // given
    elif rest:
        why = "leave room for one axis of size 0 alone" if len(rest) > 1 else f"{given} ranks of the others do not divide {n_ranks}"
        raise UserError(f"{where} {text}: {why}; give numbers whose product is {n_ranks}")
    if prod(sizes.values()) != n_ranks:
        product = " x ".join(map(str, sizes.values()))
        raise UserError(f"{where} {text}: {product} = {prod(sizes.values())} ranks, and {n_ranks} were started; start {prod(sizes.values())}, or give a grid of {n_ranks}")
    return ProcessGrid(sizes)


class GridPlacement:
    """Which rank tells of which replica, the one that computes its loss; ranks are called by their places on the grid."""

    def __init__(self, grid: ProcessGrid, tellers: tuple[int, ...]) -> None:
        self.grid, self.n_ranks, self.server_ranks, self.worker_ranks = grid, grid.n_ranks, (), tellers

    def names(self) -> list[list[str]]:
        """List what each rank is."""
        return [[self.grid.name(rank)] for rank in range(self.n_ranks)]
