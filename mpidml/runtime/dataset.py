"""Load a job's data once per host into memory that its ranks share, split it, and scale it with the same bits at any number of ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.data.readers import read, read_pair
from mpidml.data.scaling import Scaler, block_range, block_sums
from mpidml.data.split import hold_out
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm


class Dataset(NamedTuple):
    """Scaled rows x (n, features) in the job's dtype, labels y int64 (n,); test parts may be empty. Shared by all ranks of a host."""

    name: str
    x: Array
    y: Array
    test_x: Array
    test_y: Array
    n_classes: int
    scaler: Scaler


def load(job: Job, comm: CountedComm) -> Dataset:
    """Read, split and scale (Collective on comm). The first rank of each host reads the file; each rank scales its share of the rows."""
    leads = comm.host.rank == 0
    parts = agree(comm, lambda: _split(job) if leads else None)
    sizes = None if parts is None else (parts.name, len(parts.x), len(parts.test_x), parts.x.shape[1], parts.n_classes)
    name, n, n_test, n_features, n_classes = comm.host.bcast(sizes, 0)
    dtype = np.dtype(job.dtype)
    x = comm.shared(n * n_features, dtype).reshape(n, n_features)
    test_x = comm.shared(n_test * n_features, dtype).reshape(n_test, n_features)
    y, test_y = comm.shared(n, np.int64), comm.shared(n_test, np.int64)
    if parts is not None:
        x[:], y[:], test_x[:], test_y[:] = parts.x, parts.y, parts.test_x, parts.test_y
    comm.Barrier()
    # Every rank sums its own blocks of rows; all blocks, in block order, decide the scaling on every rank.
    mine = block_sums(x, *block_range(n, comm.rank, comm.size))
    scaler = Scaler.fit(np.concatenate(comm.allgather(mine)), job.scale)
    comm.Barrier()
    for part in (x, test_x):
        lo, hi = len(part) * comm.host.rank // comm.host.size, len(part) * (comm.host.rank + 1) // comm.host.size
        scaler.apply(part[lo:hi], part[lo:hi])
    comm.Barrier()
    return Dataset(name, x, y, test_x, test_y, n_classes, scaler)


class _Parts(NamedTuple):
    name: str
    x: Array
    y: Array
    test_x: Array
    test_y: Array
    n_classes: int


def _split(job: Job) -> _Parts:
    """Read the files, and hold test rows out where the files have none."""
    label = job.label or None
    raw = read_pair(job.data, job.test_data, job.view, label) if job.test_data else read(job.data, job.view, label)
    x, n_classes = raw.x.reshape(len(raw.x), -1), int(raw.y.max()) + 1
    if raw.test_x is not None and raw.test_y is not None:
        return _Parts(raw.name, x, raw.y, raw.test_x.reshape(len(raw.test_x), -1), raw.test_y, n_classes)
    train, test = hold_out(len(x), job.hold_out, job.seed)
    if len(train) == 0:
        raise UserError(f"{job.data}: all of its {len(x)} row(s) would be held out for testing; give more rows or a smaller --hold-out")
    return _Parts(raw.name, x[train], raw.y[train], x[test], raw.y[test], n_classes)
