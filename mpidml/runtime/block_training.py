"""Compute a worker's gradient block by block and sum it up a tree, so that how many workers there are shows in no bit of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpidml.core.block_tree import BlockTree, Node, children
from mpidml.core.role import Array
from mpidml.runtime.training import Training

N_LOSSES = 2
"""The sum of the losses travels at the end of a row, behind the gradient, as a number of the gradient's type and what that leaves."""


class BlockTraining(Training):
    """A `Training` whose gradient is one row for each of the worker's nodes of the tree: rows of n_params elements, and 2 at their end.

    Products of matrices have the shapes of the blocks, which the batch alone decides, since the last bits of a product depend on its shape.
    """

    def __init__(self, strategy: Any, worker: int, tree: BlockTree, rows: Array) -> None:
        super().__init__(strategy, worker)
        n = strategy.net.n_params
        self.nodes = [(node, rows[row], rows[row][:n]) for row, node in enumerate(tree.of(worker), tree.first_row[worker])]
        spare = np.zeros((tree.n_blocks.bit_length(), rows.shape[1]), rows.dtype)
        self.spare = [(row, row[:n]) for row in spare]  # views that stay: a step is made once for each

    def _sum_up(self, rows: Array, batch: int, w: Array, g: Array, scale: float, report: Callable[[int, int], None] | None) -> float:
        """Fill the rows of this worker's nodes. The loss is summed with them."""
        edges, first = self.sampler.edges(batch, self.worker), self.sampler.blocks(self.worker).start

        def add_up(node: Node, row: Array, gradient: Array) -> None:
            if node.level:
                left, right = children(node)
                add_up(left, row, gradient)
                other, part = self.spare[right.level]
                add_up(right, other, part)
                np.add(row, other, out=row)
                return
            block = node.place - first
            own = rows[edges[block] : edges[block + 1]]
            loss = 0.0
            if own.size:
                loss = self._run(own, edges[block], batch, w, gradient, scale, None)
            else:
                gradient[:] = 0
            row[-2] = loss
            row[-1] = loss - float(row[-2])
            if report is not None:
                report(0, 0)

        for node, row, gradient in self.nodes:
            add_up(node, row, gradient)
        return 0.0
