"""Decide which rows stay on the disk under a limit of memory, and how much is read ahead.

    limit >= source + scaled + labels of all rows      in memory, as without a limit
    else                                               labels and row numbers in shared memory; each worker two portions of rows, read ahead
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.core.sizes import parse_size, size_words
from mpidml.data.scaling import BLOCK, Scaler
from mpidml.data.stored import BLOCK_NBYTES, Stored
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.disk_rows import DiskRows
from mpidml.runtime.reads import Reads

PORTION_NBYTES = 4 << 20
"""The most that is read ahead at once."""
PLACES = 4
"""Portions that a worker has room for: two of the rows that it learns from, two of those that are scored."""


class Disk(NamedTuple):
    """What the first rank of a host says of rows that stay on the disk: where each part's rows lie, the bytes read ahead at once, and the notes."""

    stored: tuple[Stored, ...]
    portion_nbytes: int
    notes: tuple[str, ...]


def decide(job: Job, parts: Sequence[Any], answers_nbytes: int, scratch: Any, n_ranks: int) -> tuple[Disk | None, str]:
    """Return what stays on the disk, None where nothing has to, and a note; UserError where not even one batch fits the limit.

    `parts`: those of the data set, whose x is `Stored`; answers_nbytes: what labels or targets take; n_ranks: those of this host.
    """
    limit, width, item = parse_size(job.memory, "--memory"), parts[0].x.width, np.dtype(job.dtype).itemsize
    whole = sum(part.n * width * (part.dtype.itemsize + item) for part in parts) + answers_nbytes
    if whole <= limit:
        return None, f"--memory {job.memory}: the data take {size_words(whole)} and fit"
    fixed = answers_nbytes + sum(8 * part.n for part in parts if part.rows is not None)
    block = -(-job.batch // n_ranks) * width * item
    # Reading takes a block as it lies there and the same in float64; fitting the scaling takes a block of its own.
    work = 4 * BLOCK_NBYTES + 2 * 8 * min(BLOCK, parts[0].n) * width
    least = fixed + n_ranks * (PLACES * block + work)
    if limit < least:
        raise UserError(
            f"--memory {job.memory}: labels, a batch of {job.batch} rows read ahead, and what reading them takes need {size_words(least)} on"
            f" {n_ranks} rank(s) of a host; give at least that"
        )
    portion = max(block, min(PORTION_NBYTES, block + (limit - least) // n_ranks // PLACES))
    nbytes = sum(part.n * width * part.dtype.itemsize for part in parts)
    where = f"{size_words(scratch.used)} of them in a scratch file in {scratch.folder}" if scratch.used else "where they are"
    note = f"--memory {job.memory}: {size_words(nbytes)} of rows stay on the disk, {where}, read {size_words(portion)} at a time"
    return Disk(tuple(part.x for part in parts), portion, (note,)), note


def raw_rows(disk: Disk, numbers: Sequence[Array | None], comm: CountedComm, reads: Reads, sizes: Sequence[int]) -> list[DiskRows]:
    """Return each part's rows as they lie on the disk; `numbers` are those of the first rank of each host (Collective on the host's ranks)."""
    found = []
    for stored, own, n in zip(disk.stored, numbers, sizes, strict=True):
        of: range | Array = range(n)
        if comm.host.bcast(own is not None, 0):
            of = comm.shared(n, np.int64)
            if own is not None:
                of[:] = own
        found.append(DiskRows(stored, of, None, stored.dtype, reads))
    comm.host.Barrier()
    return found


def scaled(name: str, dtype: str, raw: Sequence[DiskRows], scaler: Scaler, comm: CountedComm) -> list[DiskRows]:
    """Return the rows scaled, in the job's dtype; UserError where a value is more than that holds (Collective on comm)."""

    def check() -> None:
        for rows in raw:
            lo, hi = (len(rows) * r // comm.host.size for r in (comm.host.rank, comm.host.rank + 1))
            least, most = _extremes(rows[lo:hi])
            ends = np.stack([least, most])
            kept = np.empty(ends.shape, dtype)
            with np.errstate(over="ignore"):
                scaler.apply(ends, kept)
            if not np.isfinite(kept).all():
                raise UserError(
                    f"{name}: values reach {np.abs(ends).max():.3g}, more than {dtype} holds after --scale; use --scale standard or --dtype float64"
                )

    agree(comm, check)
    return [DiskRows(rows.stored, rows.numbers, scaler, dtype, rows.reads) for rows in raw]


def _extremes(rows: DiskRows) -> tuple[Array, Array]:
    """Return the least and the largest value of each feature; zeros where there are no rows."""
    least = most = np.zeros(rows.shape[1])
    for lo in range(0, len(rows), BLOCK):
        block = np.array(rows[lo : lo + BLOCK], np.float64)
        least, most = (np.minimum(least, block.min(axis=0)), np.maximum(most, block.max(axis=0))) if lo else (block.min(axis=0), block.max(axis=0))
    return least, most
