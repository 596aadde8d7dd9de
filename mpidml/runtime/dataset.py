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
from mpidml.runtime.net import categories


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
    sizes = (
        None
        if parts is None
        else (parts.name, len(parts.x), len(parts.test_x), parts.x.shape[1], parts.n_classes, parts.x.dtype.str, parts.test_x.dtype.str)
    )
    name, n, n_test, n_features, n_classes, source_dtype, test_dtype = comm.host.bcast(sizes, 0)
    # Values keep the file's precision until they are scaled: large ones that differ little would be one in float32.
    source, test_source = comm.shared(n * n_features, source_dtype), comm.shared(n_test * n_features, test_dtype)
    y, test_y = comm.shared(n, np.int64), comm.shared(n_test, np.int64)
    if parts is not None:
        source[:], y[:], test_source[:], test_y[:] = parts.x.ravel(), parts.y, parts.test_x.ravel(), parts.test_y
    comm.Barrier()
    # Every rank sums its own blocks of rows; all blocks, in block order, decide the scaling on every rank.
    mine = block_sums(source.reshape(n, n_features), *block_range(n, comm.rank, comm.size))
    scaler = Scaler.fit(np.concatenate(comm.allgather(mine)), job.scale).sparing(agree(comm, lambda: categories(job)))
    scaled = [_scaled(name, job.dtype, values, rows, n_features, scaler, comm) for values, rows in ((source, n), (test_source, n_test))]
    return Dataset(name, scaled[0], y, scaled[1], test_y, n_classes, scaler)


def _scaled(name: str, dtype: str, source: Array, n: int, n_features: int, scaler: Scaler, comm: CountedComm) -> Array:
    """Return the scaled rows of `source` in the job's dtype, each rank of the host scaling its share, and free `source`."""
    x = comm.shared(n * n_features, dtype).reshape(n, n_features)
    lo, hi = n * comm.host.rank // comm.host.size, n * (comm.host.rank + 1) // comm.host.size

    def scale() -> None:
        with np.errstate(over="ignore"):
            scaler.apply(source.reshape(n, n_features)[lo:hi], x[lo:hi])
        if not np.isfinite(x[lo:hi]).all():
            largest = np.abs(source.reshape(n, n_features)[lo:hi].astype(np.float64)).max()
            raise UserError(f"{name}: values reach {largest:.3g}, more than {dtype} holds after --scale; use --scale standard or --dtype float64")

    agree(comm, scale)
    comm.unshare(source)
    return x


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
        if not job.test_data and job.hold_out != Job.hold_out:
            raise UserError(f"--hold-out {job.hold_out}: does nothing, {job.data} has test rows of its own (x_test, y_test); leave it out")
        return _Parts(raw.name, x, raw.y, raw.test_x.reshape(len(raw.test_x), -1), raw.test_y, n_classes)
    train, test = hold_out(len(x), job.hold_out, job.seed)
    if len(train) == 0:
        raise UserError(f"{job.data}: all of its {len(x)} row(s) would be held out for testing; give more rows or a smaller --hold-out")
    return _Parts(raw.name, x[train], raw.y[train], x[test], raw.y[test], n_classes)
