"""Decide which rows stay on the disk under a limit of memory, and how much is read ahead.

    no limit, or limit >= scaled rows + labels         scaled rows in shared memory, each rank reads its share of them from the disk
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
from mpidml.data.scaling import BLOCK, Scaler, rows_in_piece
from mpidml.data.stored import BLOCK_NBYTES, Stored
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.crew import Crew
from mpidml.runtime.dense_rows import fit
from mpidml.runtime.disk_rows import DiskRows
from mpidml.runtime.reads import Reads

PORTION_NBYTES = 4 << 20
"""The most that is read ahead at once."""
PLACES = 4
"""Portions that a worker has room for: two of the rows that it learns from, two of those that are scored."""


class Disk(NamedTuple):
    """Where each part's rows lie on the disk, whether they stay there, the bytes read ahead at once, and what is told of it."""

    stored: tuple[Stored, ...]
    stays: bool
    portion_nbytes: int = PORTION_NBYTES
    notes: tuple[str, ...] = ()


def decide(job: Job, parts: Sequence[Any], answers_nbytes: int, crew: Crew) -> Disk:
    """Return what is to be done with rows on the disk; UserError where not even one batch of them fits the limit.

    `parts`: those of the data set, whose x is `Stored`; answers_nbytes: what labels or targets take.
    """
    stored = tuple(part.x for part in parts)
    if not job.memory:
        return Disk(stored, False)
    limit, width, item, n_ranks = parse_size(job.memory, "--memory"), stored[0].width, np.dtype(job.dtype).itemsize, crew.host.size
    n = sum(part.n for part in parts)
    numbers = sum(8 * part.n for part in parts if part.rows is not None)
    block = -(-job.batch // n_ranks) * width * item
    # Reading takes a block as it lies there and the same in float64; fitting the scaling takes a block of its own.
    piece = rows_in_piece(8 * width)
    work = 4 * BLOCK_NBYTES + (2 + (piece < BLOCK)) * 8 * min(piece, parts[0].n) * width
    if (whole := n * width * item + answers_nbytes + numbers + n_ranks * work) <= limit:
        return Disk(stored, False, notes=(f"--memory {job.memory}: the rows take {size_words(whole)} and are in memory",))
    least = answers_nbytes + numbers + n_ranks * (PLACES * block + work)
    if limit < least:
        raise UserError(
            f"--memory {job.memory}: labels, a batch of {job.batch} rows read ahead, and what reading them takes need {size_words(least)} on"
            f" {n_ranks} rank(s) of a host; give at least that"
        )
    portion = max(block, min(PORTION_NBYTES, block + (limit - least) // n_ranks // PLACES))
    assert crew.scratch is not None
    nbytes, used = sum(part.n * width * part.dtype.itemsize for part in parts), crew.scratch.used
    where = f"{size_words(used)} in a scratch file in {crew.scratch.folder}" if used else "where they are"
    return Disk(stored, True, portion, (f"--memory {job.memory}: {size_words(nbytes)} of rows stay on the disk, {where}, read {size_words(portion)} at a time",))


def load(
    name: str, job: Job, comm: CountedComm, disk: Disk, crew: Crew, numbers: Sequence[Array | None], sizes: Sequence[int], before: Scaler | None
) -> tuple[list[Any], Scaler, Reads | None]:
    """Return each part's scaled rows, on the disk or brought into shared memory, the scaling, and what reads those on the disk (Collective on comm).

    `numbers`: which rows make each part (None: all), on the first rank of each host.
    """
    reads = Reads(disk.portion_nbytes)
    raw = _raw_rows(disk, numbers, crew, comm, reads, sizes)
    comm.Barrier()
    scaler = fit(job, comm, raw[0], before)
    scaled = _scaled(name, job.dtype, raw, scaler, comm)
    reads.begin()
    return (scaled, scaler, reads) if disk.stays else ([_brought_in(rows, comm) for rows in scaled], scaler, None)


def _raw_rows(disk: Disk, numbers: Sequence[Array | None], crew: Crew, comm: CountedComm, reads: Reads, sizes: Sequence[int]) -> list[DiskRows]:
    """Return each part's rows as they lie on the disk (Collective on the host's ranks)."""
    found = []
    for stored, own, n in zip(disk.stored, numbers, sizes, strict=True):
        stored.scratch = crew.scratch
        of: range | Array = range(n)
        if comm.host.bcast(own is not None, 0):
            of = comm.shared(n, np.int64)
            if own is not None:
                of[:] = own
        found.append(DiskRows(stored, of, None, stored.dtype, reads))
    comm.host.Barrier()
    return found


def _brought_in(rows: DiskRows, comm: CountedComm) -> Array:
    """Return rows in shared memory, each rank of the host reading its share (Collective on the host's ranks)."""
    x = comm.shared(len(rows) * rows.shape[1], rows.dtype).reshape(rows.shape)
    lo, hi = (len(rows) * r // comm.host.size for r in (comm.host.rank, comm.host.rank + 1))
    rows.read(np.arange(lo, hi), x[lo:hi])
    comm.host.Barrier()
    if not isinstance(rows.numbers, range):
        comm.unshare(rows.numbers)
    return x


def _scaled(name: str, dtype: str, raw: Sequence[DiskRows], scaler: Scaler, comm: CountedComm) -> list[DiskRows]:
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
    step = rows_in_piece(8 * rows.shape[1])
    for lo in range(0, len(rows), step):
        block = np.array(rows[lo : lo + step], np.float64)
        least, most = (np.minimum(least, block.min(axis=0)), np.maximum(most, block.max(axis=0))) if lo else (block.min(axis=0), block.max(axis=0))
    return least, most
