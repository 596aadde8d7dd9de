"""Hold copies of at most `capacity` rows of one table, and evict what was not used of late: a process cache (Wei et al., SoCC 2015).

    slot     0    1    2    3    4    5         a read marks the slots that it finds
    row     17    4   90    5   33    8         a store takes slots at the hand: it passes by marked ones and unmarks them,
    mark     1    0    1    1    0    0         and takes the first unmarked one (CLOCK, the second chance)
                       ^ hand: unmarks 90 and 5, evicts 33

A mark pays for the one step that unmarks it, so a row costs O(1) amortised. A new cache is one turn of empty, unmarked slots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.role import Array

FREE, USED, PINNED = range(3)
LEAST_STEP = 64


class RowCache:
    """Copies of rows of `width` elements, each with the `version` it shows and how many own messages it contains (`counted`)."""

    def __init__(self, capacity_rows: int, width: int, dtype: DTypeLike) -> None:
        if capacity_rows < 1:
            raise ValueError(f"a cache needs room for one row at least, not {capacity_rows}")
        self.capacity = capacity_rows
        self.slot_of: dict[int, int] = {}
        self.row_at = np.full(capacity_rows, -1, np.int64)
        self.values = np.empty((capacity_rows, width), dtype)
        self.versions = np.zeros(capacity_rows, np.int64)
        self.counts = np.zeros(capacity_rows, np.int64)
        self.marks = np.zeros(capacity_rows, np.uint8)
        self.hand = 0
        self.n_hits = self.n_misses = self.n_evicted = 0

    def __len__(self) -> int:
        return len(self.slot_of)

    def find(self, rows: Array, oldest: int) -> Array:
        """Return which of `rows` are held in a version >= `oldest`, and mark them used. They are sure to be held until the next store."""
        slots = self._slots(rows)
        hit: Array = (slots >= 0) & (self.versions[slots] >= oldest)
        self.marks[slots[hit]] = USED
        n_hits = int(np.count_nonzero(hit))
        self.n_hits += n_hits
        self.n_misses += hit.size - n_hits
        return hit

    def read(self, rows: Array, out: Array) -> tuple[Array, Array]:
        """Copy the values of `rows`, all of them held, into `out` (n x width); return the version and the count of each."""
        slots = self._slots(rows)
        if slots.size and slots.min() < 0:
            raise KeyError(f"row {rows[slots.argmin()]} is not held")
        np.take(self.values, slots, axis=0, out=out, mode="clip")  # the default mode would copy through a buffer
        return self.versions[slots], self.counts[slots]

    def store(self, rows: Array, values: Array, version: int, counted: int) -> None:
        """Take `rows` of one answer with their `values` (n x width), except where something newer is held.

        Of a row that is repeated the last counts; of more rows than the capacity the last ones are kept. No row of an answer evicts another one.
        """
        last = np.fromiter(dict(zip(rows.tolist(), range(rows.size), strict=True)).values(), np.int64)
        last = np.sort(last)[-self.capacity :]
        if last.size < rows.size:
            rows, values = rows[last], values[last]
        slots = self._slots(rows)
        fresh = np.flatnonzero(slots < 0)
        self.marks[slots[slots >= 0]] = PINNED
        slots[fresh] = taken = self._take(fresh.size)
        self._forget(taken)
        self.row_at[taken] = rows[fresh]
        self.slot_of.update(zip(rows[fresh].tolist(), taken.tolist(), strict=True))
        self.versions[taken] = self.counts[taken] = -1  # older than any answer
        self.marks[slots] = USED
        newer = self._outdated(slots, version, counted)
        if not newer.all():
            slots, values = slots[newer], values[newer]
        self.values[slots] = values
        self.versions[slots], self.counts[slots] = version, counted

    def oldest_version(self, since: int = 0, lo: int = 0, hi: int | None = None) -> int | None:
        """Return the oldest version held; None if nothing is. Versions < `since`, which no later read takes, and rows outside [lo, hi) are left out."""
        return self._least(self.versions, since, lo, hi)

    def oldest_counted(self, since: int = 0, lo: int = 0, hi: int | None = None) -> int | None:
        """Return the least count held, under the same conditions. [lo, hi) is for one shard: each counts for itself."""
        return self._least(self.counts, since, lo, hi)

    def drop(self, version: int, counted: int, lo: int = 0, hi: int | None = None) -> None:
        """Let no later read take a row of [lo, hi) that shows less than `version` or contains fewer than `counted` own messages."""
        n = len(self.slot_of)
        rows = self.row_at[:n]
        old = (rows >= lo) & ((self.versions[:n] < version) | (self.counts[:n] < counted))
        if hi is not None:
            old &= rows < hi
        self.versions[:n][old] = self.counts[:n][old] = -1

    def _least(self, numbers: Array, since: int, lo: int, hi: int | None) -> int | None:
        n = len(self.slot_of)  # slots fill up from 0 and never become empty again
        rows = self.row_at[:n]
        kept = (self.versions[:n] >= since) & (rows >= lo)
        if hi is not None:
            kept &= rows < hi
        return int(numbers[:n].min(where=kept, initial=np.iinfo(np.int64).max)) if kept.any() else None

    def _slots(self, rows: Array) -> Array:
        get = self.slot_of.get
        return np.array([get(row, -1) for row in rows.tolist()], np.int64)

    def _outdated(self, slots: Array, version: int, counted: int) -> Array:
        """Say which slots hold nothing newer than that; of one version, what contains more own messages is newer."""
        held = self.versions[slots]
        outdated: Array = (held < version) | ((held == version) & (self.counts[slots] <= counted))
        return outdated

    def _take(self, n: int) -> Array:
        """Turn the hand until it has passed `n` unmarked slots; pin and return them."""
        found: list[Array] = []
        while n > 0:
            marks = self.marks[self.hand : self.hand + max(n, LEAST_STEP)]
            free = np.flatnonzero(marks == FREE)[:n]
            passed = marks[: free[-1] + 1] if free.size == n else marks
            passed[passed == USED] = FREE
            marks[free] = PINNED
            found.append(free + self.hand)
            self.hand = (self.hand + passed.size) % self.capacity
            n -= free.size
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _forget(self, slots: Array) -> None:
        for row in self.row_at[slots].tolist():
            if row >= 0:
                del self.slot_of[row]
                self.n_evicted += 1
