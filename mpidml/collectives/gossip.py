"""Average with the neighbours on a graph, in place of a sum over all: little travels, and the ranks agree in the limit only."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mpidml.collectives.base import Collective
from mpidml.core.errors import UserError, nearest
from mpidml.core.rounds import Array, Move, Round, Rounds

GRAPHS = ("ring", "torus", "exponential")


class Gossip(Collective):
    """One round: a rank's buffer becomes the mean of its own and its neighbours', each with weight 1 / (1 + number of neighbours).

    ring: the ranks before and after; torus: those above and below, too, on the squarest grid (a ring where P is prime); exponential: those at
    distances +-1, +-2, +-4, ... The weights are symmetric and sum to one, so the mean over all ranks never changes, and the distance from it
    shrinks each time by the second largest absolute eigenvalue of the matrix of weights. Source: Xiao and Boyd 2004; Lian et al. 2017; Assran et al. 2019.
    """

    exact: ClassVar[bool] = False

    def __init__(self, graph: str = "ring") -> None:
        if graph not in GRAPHS:
            raise UserError(f"gossip: there is no graph '{graph}'; {nearest(str(graph), GRAPHS)}")
        self.graph = graph

    def neighbours(self, rank: int, size: int) -> list[int]:
        """Return the neighbours of `rank`, sorted; the graph is symmetric and regular."""
        if self.graph == "ring":
            found = {(rank + d) % size for d in (1, -1)}
        elif self.graph == "torus":
            height = next(h for h in range(int(size**0.5), 0, -1) if size % h == 0)
            width = size // height
            row, column = divmod(rank, width)
            found = {row * width + (column + d) % width for d in (1, -1)} | {(row + d) % height * width + column for d in (1, -1)}
        else:
            found = {(rank + sign * (1 << k)) % size for k in range(max(1, (size - 1).bit_length())) for sign in (1, -1)}
        return sorted(found - {rank})

    def matrix(self, size: int) -> Array:
        """Return the weights (size, size) float64."""
        weights = np.zeros((size, size))
        for rank in range(size):
            of = [rank, *self.neighbours(rank, size)]
            weights[rank, of] = 1.0 / len(of)
        return weights

    def refuse(self, dtype: Any) -> None:
        """UserError for a type of whole numbers, which holds no part of one."""
        if dtype.kind not in "fc":
            raise UserError(f"gossip: {dtype} is no type to take a mean in; give float32 or float64")

    def rounds(self, rank: int, size: int, n: int) -> Rounds:
        """Exchange the whole buffer with every neighbour."""
        moves = tuple(Move(peer, 0, n) for peer in self.neighbours(rank, size))
        return Rounds((Round(moves, moves, weights=(1.0 / (1 + len(moves)),) * (1 + len(moves))),), (), 0, n)
