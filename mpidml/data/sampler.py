"""Say which rows a worker computes on at a clock: one global order an epoch, cut into batches, each batch shared out among the workers.

    order of epoch e   | batch of clock 0 | batch of clock 1 | ... | rest |
    clock 0, 3 workers | w 0 | w 1 | w 2  |

The order is drawn by (seed, epoch), never by the worker, so that W workers together see the batches of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml.core import rng
from mpidml.core.shares import Shares

Array = np.ndarray[Any, Any]


class Sampler:
    """Draw each of `n` rows once an epoch, in global batches of `batch`, for `n_workers` workers (shares are empty where workers outnumber rows).

    Each batch is cut into `n_blocks` (default: one a worker), of which every worker has whole ones; where there are `shares`, these cut it.

    Clock c lies in epoch c // clocks_per_epoch. A lookup costs O(1); the first one in an epoch draws its order, O(n). Two orders are kept.
    """

    def __init__(self, n: int, batch: int, n_workers: int, seed: int, n_blocks: int = 0) -> None:
        if min(n, batch, n_workers) < 1:
            raise ValueError(f"sampler: n={n}, batch={batch}, n_workers={n_workers}; each must be at least 1")
        self.n, self.batch, self.n_workers, self.seed, self.n_blocks = n, batch, n_workers, seed, n_blocks or n_workers
        self.shares: Shares | None = None
        self.clocks_per_epoch = -(-n // batch)
        self._orders: dict[int, Array] = {}

    def indices(self, clock: int, worker: int) -> Array:
        """Return the rows of `worker` at `clock`: its contiguous share of the global batch, a read-only int64 view."""
        epoch, k = divmod(clock, self.clocks_per_epoch)
        order, first = self._order(epoch), k * self.batch
        blocks = self.blocks(worker)
        return order[first + self._edge(clock, blocks.start) : first + self._edge(clock, blocks.stop)]

    def blocks(self, worker: int) -> range:
        """Return the blocks of each batch that `worker` computes."""
        return range(self.n_blocks * worker // self.n_workers, self.n_blocks * (worker + 1) // self.n_workers)

    def edges(self, clock: int, worker: int) -> list[int]:
        """Return where the blocks of `worker` begin and end in its `indices`."""
        blocks = self.blocks(worker)
        return [self._edge(clock, block) - self._edge(clock, blocks.start) for block in (*blocks, blocks.stop)]

    def _edge(self, clock: int, block: int) -> int:
        if self.shares is not None:
            return self.shares.edge(self.batch_size(clock), block)
        return self.batch_size(clock) * block // self.n_blocks

    def global_batch(self, clock: int) -> Array:
        """Return the rows of all workers at `clock`, in worker order: a read-only int64 view."""
        epoch, k = divmod(clock, self.clocks_per_epoch)
        return self._order(epoch)[k * self.batch : min(self.n, (k + 1) * self.batch)]

    def batch_size(self, clock: int) -> int:
        """Return the number of rows in the global batch of `clock`; only the last one of an epoch may be smaller than `batch`."""
        return min(self.batch, self.n - clock % self.clocks_per_epoch * self.batch)

    def _order(self, epoch: int) -> Array:
        order = self._orders.get(epoch)
        if order is None:
            order = rng.stream(self.seed, "order", epoch).permutation(self.n).astype(np.int64, copy=False)
            order.flags.writeable = False
            if len(self._orders) == 2:  # prefetch reads one epoch ahead, never two
                del self._orders[min(self._orders)]
            self._orders[epoch] = order
        return order
