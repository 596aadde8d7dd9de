"""Send updates no faster than a budget allows, the important ones first: managed communication (Wei et al., SoCC 2015).

    push --add--> Backlog, summed in place --next, in a chosen order--> piece --once TokenBucket.take says so--> server
                  block  0    1    2    3
                  dirty since   clock 4       clock 2   -> oldest_clock() = 2: clocks 0 and 1 are complete

What waits costs no more memory than one copy of the table, however long it waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.rng import stream
from mpidml.core.role import Array
from mpidml.ps.own_writes import Region

ORDERS = ("fifo", "random", "magnitude")
BURST_SECONDS = 0.1
MARGIN_SECONDS = 1e-6
ROW_NUMBER_NBYTES = 8
NEVER = int(np.iinfo(np.int64).max)


class TokenBucket:
    """Grant bytes at `rate` a second: in any window of one second at most rate + max(burst, largest piece).

    By default `burst` is a tenth of the rate, so pieces of at most `piece_nbytes` keep every window within 1.1 * rate. A larger piece is granted
    when the bucket is full and leaves a debt: the rate holds in the long run, but the window holds only what is said above.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        if not rate > 0 or (burst is not None and not burst > 0):
            raise ValueError(f"a budget needs a rate and a burst above 0, not {rate} and {burst}")
        self.rate = rate
        self.burst = BURST_SECONDS * rate if burst is None else burst
        self.tokens = self.burst
        self.since: float | None = None

    @property
    def piece_nbytes(self) -> int:
        """The largest piece with which a window holds at most rate + burst."""
        return int(self.burst)

    def take(self, now: float, nbytes: int) -> bool:
        """Grant `nbytes`, or change nothing."""
        level = self._level(now)
        if level < min(nbytes, self.burst):
            return False
        self.tokens = level - nbytes
        self.since = now if self.since is None else max(self.since, now)
        return True

    def wait_seconds(self, now: float, nbytes: int) -> float:
        """Return how long from `now` the same question has to wait; 0 if it is granted at once."""
        lacking = min(nbytes, self.burst) - self._level(now)
        # The margin keeps a clock's rounding from making the caller come a moment too early.
        return lacking / self.rate + MARGIN_SECONDS if lacking > 0 else 0.0

    def _level(self, now: float) -> float:
        grown = 0.0 if self.since is None else max(0.0, now - self.since) * self.rate
        return min(self.burst, self.tokens + grown)


class Unsent(NamedTuple):
    """A piece taken out of a backlog: `values` (rows x width) of `region`, the newest clock they contain, what they weigh on the way,
    and the oldest version that any delta in it was computed from."""

    region: Region
    values: Array
    newest_clock: int
    nbytes: int
    version: int = 0


class Backlog:
    """Sum up deltas to a table and hand them out in pieces of at most `piece_rows` rows: blocks [k * piece_rows, (k + 1) * piece_rows).

    A piece is a whole block or only its changed rows, listed, whichever takes fewer bytes. `order`, which block is next:
    `fifo` the one that has waited longest, `random` a draw by `seed`, `magnitude` the one with the largest root mean square.
    Magnitude may keep small changes back for long. A worker whose reads wait for its own clocks adds nothing meanwhile, so they go out then.
    `exact`: a piece never holds an unchanged row, which an optimizer would take for a gradient of 0.
    """

    def __init__(self, n_rows: int, width: int, dtype: DTypeLike, piece_rows: int, order: str = "fifo", seed: int = 0, exact: bool = False) -> None:
        if order not in ORDERS:
            raise ValueError(f"order '{order}' is not one of {', '.join(ORDERS)}")
        if piece_rows < 1:
            raise ValueError(f"a piece has one row at least, not {piece_rows}")
        self.width, self.piece_rows, self.order, self.exact = width, piece_rows, order, exact
        self.unsent = np.zeros((n_rows, width), dtype)
        self.changed = np.zeros(n_rows, bool)
        starts = np.arange(0, n_rows, piece_rows)
        self.sizes = np.minimum(n_rows - starts, piece_rows)
        self.n_changed = np.zeros(starts.size, np.int64)
        self.oldest = np.full(starts.size, NEVER)
        self.newest = np.full(starts.size, -1)
        self.stalest = np.full(starts.size, NEVER)
        self.turns = np.full(starts.size, NEVER)
        self.scores = np.full(starts.size, -1.0)
        self.next_turn = 0
        self.rng = stream(seed, "backlog")

    def add(self, clock: int, delta: Array, lo: int, hi: int, rows: Array | None = None, version: int = 0) -> None:
        """Sum `delta` (rows x width elements) of `clock`, which read `version`, into rows [lo, hi) or the listed `rows`, which may repeat."""
        delta = delta.reshape(-1, self.width)
        if not delta.size:
            return
        if rows is None:
            self.unsent[lo:hi] += delta
            self.changed[lo:hi] = True
            blocks = np.arange(lo // self.piece_rows, (hi - 1) // self.piece_rows + 1)
            within = self.changed[blocks[0] * self.piece_rows : (blocks[-1] + 1) * self.piece_rows]
            self.n_changed[blocks] = np.add.reduceat(within, (blocks - blocks[0]) * self.piece_rows, dtype=np.int64)
        else:
            unique = np.unique(rows)
            if unique.size == rows.size:
                self.unsent[rows] += delta
            else:
                np.add.at(self.unsent, rows, delta)
            np.add.at(self.n_changed, unique[~self.changed[unique]] // self.piece_rows, 1)
            self.changed[unique] = True
            blocks = np.unique(unique // self.piece_rows)
        new = blocks[self.turns[blocks] == NEVER]
        self.turns[new] = self.next_turn + np.arange(new.size)
        self.next_turn += new.size
        self.oldest[blocks] = np.minimum(self.oldest[blocks], clock)
        self.newest[blocks] = np.maximum(self.newest[blocks], clock)
        self.stalest[blocks] = np.minimum(self.stalest[blocks], version)
        if self.order == "magnitude":
            for k in blocks.tolist():  # in float64, so that large values of a narrower type do not overflow
                self.scores[k] = np.square(self.unsent[k * self.piece_rows : (k + 1) * self.piece_rows], dtype=np.float64).mean()

    def next(self, granted: Callable[[int], bool] | None = None) -> Unsent | None:
        """Take out the next piece, as arrays of its own; None when all is sent, or where `granted(bytes)` refuses it. Listed rows are sorted."""
        if not self.n_changed.any():
            return None
        k = self._pick()
        lo = k * self.piece_rows
        hi = lo + int(self.sizes[k])
        nbytes, newest, stalest = int(self._nbytes()[k]), int(self.newest[k]), int(self.stalest[k])
        if granted is not None and not granted(nbytes):
            return None
        if nbytes < self.unsent[lo:hi].nbytes or (self.exact and self.n_changed[k] < self.sizes[k]):
            rows = np.flatnonzero(self.changed[lo:hi]) + lo
            region, values = Region(-1, -1, rows), self.unsent[rows]
        else:
            region, values = Region(lo, hi), self.unsent[lo:hi].copy()
        self._clear(k, lo, hi)
        return Unsent(region, values, newest, nbytes, stalest)

    def oldest_clock(self) -> int | None:
        """Return the oldest clock of which something may be unsent: all before it are complete. None when all is sent."""
        oldest = int(self.oldest.min(initial=NEVER))
        return None if oldest == NEVER else oldest

    def overlay(self, out: Array, region: Region) -> None:
        """Add what is unsent to `out`, the values of `region`."""
        out += self.unsent[region.lo : region.hi] if region.rows is None else self.unsent[region.rows]

    @property
    def nbytes(self) -> int:
        """What is unsent, in bytes as pieces would take it: values, and row numbers where rows are listed."""
        return int(self._nbytes().sum())

    def _nbytes(self) -> Array:
        """Return the bytes of each block's piece, 0 for a clean one."""
        row_nbytes = self.width * self.unsent.itemsize
        listed, whole = self.n_changed * (row_nbytes + ROW_NUMBER_NBYTES), self.sizes * row_nbytes
        nbytes: Array = np.where(self.n_changed == self.sizes, whole, listed) if self.exact else np.minimum(listed, whole)
        return nbytes

    def _pick(self) -> int:
        if self.order == "random":
            dirty = np.flatnonzero(self.n_changed)
            return int(dirty[self.rng.integers(dirty.size)])
        return int(self.scores.argmax() if self.order == "magnitude" else self.turns.argmin())

    def _clear(self, k: int, lo: int, hi: int) -> None:
        self.unsent[lo:hi] = 0
        self.changed[lo:hi] = False
        self.n_changed[k] = 0
        self.oldest[k] = self.turns[k] = self.stalest[k] = NEVER
        self.newest[k], self.scores[k] = -1, -1.0
