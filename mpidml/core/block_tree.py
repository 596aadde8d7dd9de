"""Sum blocks in an order that does not depend on how many ranks hold them: a binary tree over the blocks, whoever computes which.

    8 blocks, 3 ranks     | 0  1 | 2  3  4 | 5  6  7 |
    nodes of the ranks    [ 01  ] [ 23 ][4] [5][ 67 ]          the largest whole subtrees that lie within a rank's blocks
    above them            ( 01 + 23 ) + ( (4 + 5) + 67 )       the same additions for any number of ranks

Floating-point addition is commutative, not associative: what is added to what decides the bits, and the tree alone decides that.
"""

from __future__ import annotations

from typing import NamedTuple

from mpidml.core.rounds import cut


class Node(NamedTuple):
    """The sum of blocks [place << level, (place + 1) << level)."""

    level: int
    place: int


class BlockTree:
    """The tree over `n_blocks`, a power of two, that `n_ranks` hold in equal shares; `rows` are the nodes of all ranks, in order of their blocks.

    `first_row[r]` is the first of rank r's rows. After the additions `adds` (into row, row) in their order, row 0 is the sum of all blocks.
    """

    def __init__(self, n_blocks: int, n_ranks: int) -> None:
        if n_blocks < 1 or n_blocks & (n_blocks - 1):
            raise ValueError(f"block tree: {n_blocks} blocks are no power of two")
        self.n_blocks, self.n_ranks = n_blocks, n_ranks
        self.rows: list[Node] = []
        self.first_row = [0]
        for rank in range(n_ranks):
            self.rows += nodes(*cut(n_blocks, n_ranks, rank))
            self.first_row.append(len(self.rows))
        self.adds: list[tuple[int, int]] = []
        self._join(Node(n_blocks.bit_length() - 1, 0), {node: row for row, node in enumerate(self.rows)})

    def of(self, rank: int) -> list[Node]:
        """Return the nodes of a rank."""
        return self.rows[self.first_row[rank] : self.first_row[rank + 1]]

    def _join(self, node: Node, row_of: dict[Node, int]) -> int:
        if node in row_of:
            return row_of[node]
        left, right = (self._join(child, row_of) for child in children(node))
        self.adds.append((left, right))
        return left


def children(node: Node) -> tuple[Node, Node]:
    """Return the two halves of a node."""
    return Node(node.level - 1, 2 * node.place), Node(node.level - 1, 2 * node.place + 1)


def nodes(lo: int, hi: int) -> list[Node]:
    """Return the fewest whole subtrees that make up blocks [lo, hi), in order."""
    found = []
    while lo < hi:
        level = (hi - lo).bit_length() - 1
        while lo % (1 << level):
            level -= 1
        found.append(Node(level, lo >> level))
        lo += 1 << level
    return found
