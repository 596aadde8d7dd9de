"""Let a worker read its own writes: keep what it pushed until the servers' answers contain it, and add the rest to what it reads.

A write is known to be contained by its number (deltas that count on arrival: the answer says how many of the reader's messages the shard
has counted) or by its clock (deltas that count by clock: all of clocks < the answer's version).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpidml.core.role import Array


class Region(NamedTuple):
    """Rows of a table: [lo, hi), or those listed in `rows` (sorted and unique for a write)."""

    lo: int
    hi: int
    rows: Array | None = None


class Write(NamedTuple):
    number: int
    clock: int
    region: Region
    values: Array


class OwnWrites:
    """The writes of one worker to one shard that an answer may still lack."""

    def __init__(self, by_clock: bool) -> None:
        self.by_clock = by_clock
        self.writes: list[Write] = []

    def add(self, number: int, clock: int, region: Region, values: Array) -> Write:
        """Note and return a write of `values` (rows x width); they are copied, repeated rows summed."""
        if region.rows is not None:
            rows, inverse = np.unique(region.rows, return_inverse=True)
            summed = np.zeros((rows.size, values.shape[1]), values.dtype)
            np.add.at(summed, inverse, values)
            region, values = Region(-1, -1, rows), summed
        else:
            values = values.copy()
        write = Write(number, clock, region, values)
        self.writes.append(write)
        return write

    def contained(self, write: Write, version: int, count: int) -> bool:
        """Whether an answer of that version and count contains `write`."""
        return write.clock < version if self.by_clock else write.number <= count

    def forget(self, version: int, count: int) -> None:
        """Drop the writes that every answer from now on contains."""
        self.writes = [w for w in self.writes if not self.contained(w, version, count)]

    def overlay(self, out: Array, region: Region, version: int, count: int) -> None:
        """Add to `out`, the values of `region` in an answer of that version and count, what it lacks."""
        for write in self.writes:
            if not self.contained(write, version, count):
                add_to(write, out, region)

    def overlay_rows(self, out: Array, rows: Array, versions: Array, counts: Array) -> None:
        """Add to `out`, the values of `rows`, what each lacks; each row comes from an answer of a version and a count of its own."""
        for write in self.writes:
            lacking = np.flatnonzero(versions <= write.clock if self.by_clock else counts < write.number)
            if lacking.size:
                part = out[lacking]
                add_to(write, part, Region(-1, -1, rows[lacking]))
                out[lacking] = part


def add_to(write: Write, out: Array, read: Region) -> None:
    """Add a write to `out`, the values of region `read`, where they overlap."""
    wrote, values = write.region, write.values
    if wrote.rows is not None and read.rows is not None:
        at = np.minimum(np.searchsorted(wrote.rows, read.rows), wrote.rows.size - 1)
        hit = wrote.rows[at] == read.rows
        out[hit] += values[at[hit]]
    elif wrote.rows is not None:
        hit = (wrote.rows >= read.lo) & (wrote.rows < read.hi)
        out[wrote.rows[hit] - read.lo] += values[hit]
    elif read.rows is not None:
        hit = (read.rows >= wrote.lo) & (read.rows < wrote.hi)
        out[hit] += values[read.rows[hit] - wrote.lo]
    else:
        lo, hi = max(read.lo, wrote.lo), min(read.hi, wrote.hi)
        if lo < hi:
            out[lo - read.lo : hi - read.lo] += values[lo - wrote.lo : hi - wrote.lo]
