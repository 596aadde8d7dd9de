"""Sum in the order of a tree over fixed blocks of samples, so that any number of ranks gives the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml.collectives.base import Both, Collective, Done, Halves, RoundSum, Sum
from mpidml.core.block_tree import BlockTree
from mpidml.core.errors import UserError
from mpidml.core.rounds import Array, Move, Round, moved

BLOCKS = 16
ALIGN = 64
"""Elements at which parts begin: a kernel's last elements may be computed in another way than those before, so they are the same in every cut."""


class Ordered(Collective):
    """A rank gives the sums of whole subtrees of its blocks (`core.block_tree`); each owner adds up its part of all of them, as the tree says.

    Where a buffer is summed (`plan`), each rank's is one block. One round brings every owner what it needs, one the sums to all:
    (nodes of the rank + 1) (P - 1) / P of the buffer leaves each rank.
    """

    def __init__(self, blocks: int | None = None) -> None:
        if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1 or blocks & (blocks - 1)):
            raise UserError(f"ordered: {blocks} blocks are no power of two; give one, as {BLOCKS}")
        self.given, self.blocks = blocks is not None, blocks or BLOCKS

    def tree(self) -> BlockTree:
        """Return who computes which blocks; UserError for more ranks than blocks."""
        if self.comm.size > self.blocks:
            raise UserError(f"ordered: {self.blocks} blocks are too few for {self.comm.size} ranks; use --collective ordered:{1 << (self.comm.size - 1).bit_length()}")
        return BlockTree(self.blocks, self.comm.size)

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`, one block of each rank. UserError where a number of blocks was given."""
        if self.given:
            self.check(buffer)
            raise UserError(f"ordered:{self.blocks}: blocks are of a batch's samples, under --strategy data_parallel; what is summed here has none, so give ordered")
        return self.plan_beside(buffer)

    def plan_beside(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`, one block of each rank, however many blocks a batch has."""
        self.check(buffer)
        size = self.comm.size
        tree = BlockTree(1 << (size - 1).bit_length(), 1 << (size - 1).bit_length())
        rows = np.zeros((tree.n_blocks, buffer.size), buffer.dtype)  # blocks that no rank has are zero
        reduce = _TreeSum(self.comm, rows, list(range(size + 1)), tree.adds)
        own = slice(reduce.lo, reduce.hi)
        give = Both(_Copy(buffer, rows[self.comm.rank]), reduce, lambda: rows[size:].fill(0))
        return Both(give, RoundSum(self.comm, reduce.spread(buffer.size), buffer), lambda: np.copyto(buffer[own], rows[0, own]))

    def halves_of_blocks(self, rows: Array, tree: BlockTree, weights: Array, whole: bool = False) -> Halves:
        """Prepare a sum of blocks: rows (len(tree.rows), n), of which each rank fills its own; the sum comes to lie in row 0.

        `weights`, not longer than n, are changed and brought together as `halves` says; with `whole` every rank has the whole sum.
        """
        reduce = _TreeSum(self.comm, rows, tree.first_row, tree.adds)
        if whole:
            every = RoundSum(self.comm, reduce.spread(rows.shape[1]), rows[0])
            return Halves(Both(reduce, every), Done(), 0, weights.size, rows[0, : weights.size], False)
        lo, hi = (min(edge, weights.size) for edge in (reduce.lo, reduce.hi))
        return Halves(reduce, RoundSum(self.comm, reduce.spread(weights.size), weights), lo, hi, rows[0, lo:hi], True)

    def room(self, n: int, more: int) -> int:
        """Return how many elements a row has whose last `more` come after `n` others and have one owner: all, and a gap where they would be cut apart."""
        gap = -n % ALIGN
        return n + more + (gap if gap < more else 0)

    def owner(self, n: int, element: int) -> int:
        """Return the rank that owns an element of n."""
        return next(rank for rank in range(self.comm.size) if element < part(n, rank, self.comm.size)[1])


def part(n: int, rank: int, size: int) -> tuple[int, int]:
    """Return the elements of n that `rank` owns."""
    n_units = -(-n // ALIGN)
    return min(n, n_units * rank // size * ALIGN), min(n, n_units * (rank + 1) // size * ALIGN)


class _Copy(Done):
    """Copy at the start."""

    def __init__(self, source: Array, target: Array) -> None:
        self.source, self.target = source, target

    def start(self) -> None:
        """Copy."""
        np.copyto(self.target, self.source)


class _TreeSum(Sum):
    """Bring the own part of all rows here, and add them up."""

    def __init__(self, comm: Any, rows: Array, first_row: list[int], adds: list[tuple[int, int]]) -> None:
        self.rank, self.size, self.n = comm.rank, comm.size, rows.shape[1]
        self.lo, self.hi = self.part(self.rank)
        own, others = range(first_row[self.rank], first_row[self.rank + 1]), [rank for rank in range(self.size) if rank != self.rank]
        sends = tuple(Move(rank, row * self.n + lo, row * self.n + hi) for rank in others for lo, hi in [self.part(rank)] for row in own)
        receives = tuple(
            Move(rank, row * self.n + self.lo, row * self.n + self.hi) for rank in others for row in range(first_row[rank], first_row[rank + 1])
        )
        exchange = (Round(sends, receives, adds=False),) if others else ()
        self.moving = RoundSum(comm, exchange, rows.reshape(-1))
        self.nbytes, self.n_rounds = moved(exchange) * rows.itemsize, len(exchange)
        self.adds = [(rows[into, self.lo : self.hi], rows[row, self.lo : self.hi]) for into, row in adds]
        self.is_done = True

    def part(self, rank: int) -> tuple[int, int]:
        """Return the elements that `rank` owns."""
        return part(self.n, rank, self.size)

    def spread(self, n: int) -> tuple[Round, ...]:
        """Return the round in which every owner sends its part, as far as it lies below n, to all."""
        parts = [tuple(min(edge, n) for edge in self.part(rank)) for rank in range(self.size)]
        others = [rank for rank in range(self.size) if rank != self.rank]
        sends = tuple(Move(rank, *parts[self.rank]) for rank in others)
        return (Round(sends, tuple(Move(rank, *parts[rank]) for rank in others), adds=False),) if others else ()

    def start(self) -> None:
        """Send the own rows."""
        self.moving.start()
        self.is_done = False

    def test(self) -> bool:
        """Add up once all rows are here."""
        if self.is_done:
            return True
        if not self.moving.test():
            return False
        for into, row in self.adds:
            np.add(into, row, out=into)
        self.is_done = True
        return True

    def late(self) -> list[int]:
        """Return the ranks whose rows have not come."""
        return self.moving.late()

    def free(self) -> None:
        """Free the requests."""
        self.moving.free()
