"""Load a job's data once per host into memory that its ranks share, split it, and scale it with the same bits at any number of ranks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.core.target import parse_target
from mpidml.data.readers import Reading, read, read_pair
from mpidml.data.scaling import BLOCK, Scaler, block_range, block_sums
from mpidml.data.split import hold_out
from mpidml.data.targets import Targets
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm, shared_memory_nbytes
from mpidml.runtime.info import memory_nbytes
from mpidml.runtime.net import categories


class Dataset(NamedTuple):
    """Scaled rows x (n, features) in the job's dtype, labels y int64 (n,); test parts may be empty. Shared by all ranks of a host.

    In a regression (`targets` is not None) y are the scaled targets (n, k) in the job's dtype, and n_outputs is k, else the number of classes.
    `coding`: how the rows were coded, known to the first rank of each host alone.
    """

    name: str
    x: Array
    y: Array
    test_x: Array
    test_y: Array
    n_outputs: int
    scaler: Scaler
    targets: Targets | None = None
    notes: tuple[str, ...] = ()
    coding: Any = None

    def quality(self, score: float, rows: float, test_loss: float | None) -> dict[str, float | None]:
        """Say how good a model is on `rows` test rows: accuracy from the number of correct ones, or RMSE and R2 from their squared errors.

        All None where nothing was measured or the loss is no number: outputs that are no numbers have a largest one by chance only.
        """
        measured = bool(rows) and test_loss is not None and math.isfinite(test_loss)
        if self.targets is None:
            return {"test_accuracy": score / rows if measured else None}
        return self.targets.quality(score, rows) if measured else {"test_rmse": None, "test_r2": None}


def check_target(job: Job, data: Dataset) -> None:
    """Refuse a target that these data cannot show."""
    target = parse_target(job.target)
    if target is not None and not len(data.test_x):
        raise UserError(f"--target {job.target}: there are no test rows to measure it on; give --test-data or --hold-out 0.2")
    if target is not None and target.kind == "accuracy" and data.targets is not None:
        raise UserError(f"--target {job.target}: a regression has no accuracy; give a test loss, as loss:0.1")


def load(job: Job, comm: CountedComm) -> Dataset:
    """Read, split and scale (Collective on comm). The first rank of each host reads the file; each rank scales its share of the rows."""
    leads = comm.host.rank == 0
    parts = agree(comm, lambda: _split(job) if leads else None)
    about = None if parts is None else _about(parts)
    name, n, n_test, n_features, n_outputs, source_dtype, test_dtype, targets, notes = comm.host.bcast(about, 0)
    # Values keep the file's precision until they are scaled: large ones that differ little would be one in float32.
    source, test_source = comm.shared(n * n_features, source_dtype), comm.shared(n_test * n_features, test_dtype)
    width, kind = (1, np.dtype(np.int64)) if targets is None else (n_outputs, np.dtype(job.dtype))
    y, test_y = comm.shared(n * width, kind), comm.shared(n_test * width, kind)
    if parts is not None:
        for part, to, labels in ((parts.train, source, y), (parts.test, test_source, test_y)):
            part.write(to.reshape(part.n, n_features))
            labels[:] = part.y if targets is None else targets.scaled(part.y).ravel()
    comm.Barrier()
    # Every rank sums its own blocks of rows; all blocks, in block order, decide the scaling on every rank.
    mine = block_sums(source.reshape(n, n_features), *block_range(n, comm.rank, comm.size))
    scaler = Scaler.fit(np.concatenate(comm.allgather(mine)), job.scale).sparing(agree(comm, lambda: categories(job)))
    scaled = [scaled_rows(name, job.dtype, values, rows, n_features, scaler, comm) for values, rows in ((source, n), (test_source, n_test))]
    if targets is not None:
        y, test_y = y.reshape(n, width), test_y.reshape(n_test, width)
    return Dataset(name, scaled[0], y, scaled[1], test_y, n_outputs, scaler, targets, notes, None if parts is None else parts.coding)


def scaled_rows(name: str, dtype: str, source: Array, n: int, n_features: int, scaler: Scaler, comm: CountedComm) -> Array:
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


class Part:
    """Rows of x, dense or sparse, in memory or on the disk, that are copied once, to where they are shared; y of those rows."""

    def __init__(self, x: Any, y: Array, rows: Array | None = None) -> None:
        self.x, self.y, self.rows = x, y if rows is None else y[rows], rows
        self.n = len(self.y)
        self.is_sparse = hasattr(x, "indptr")
        # Counts and the like take half the room, and not a bit changes.
        halves = self.is_sparse and (x.data.astype(np.float32) == x.data).all()
        self.dtype = np.dtype(np.float32) if halves else x.dtype

    def write(self, out: Array) -> None:
        """Copy the rows to `out` (n, features), a block at a time."""
        for lo in range(0, self.n, BLOCK):
            block = self.x[lo : lo + BLOCK] if self.rows is None else self.x[self.rows[lo : lo + BLOCK]]
            out[lo : lo + BLOCK] = block.toarray() if self.is_sparse else block


class _Parts(NamedTuple):
    name: str
    train: Part
    test: Part
    n_outputs: int
    targets: Targets | None
    notes: tuple[str, ...]
    coding: Any


def _split(job: Job) -> _Parts:
    """Read the files, and hold test rows out where the files have none."""
    how: dict[str, Any] = {name: getattr(job, name) for name in Reading._fields if name in job.mapping()}
    how |= {"label": job.label or None, "labels": job.labels or None}
    if job.test_data:
        raw = read_pair(job.data, job.test_data, test_labels=job.test_labels or None, **how)
    else:
        raw = read(job.data, **how, train_rows=lambda n: hold_out(n, job.hold_out, job.seed)[0])
    if raw.test_x is not None and raw.test_y is not None:
        if not job.test_data and job.hold_out != Job.hold_out:
            raise UserError(f"--hold-out {job.hold_out}: does nothing, {job.data} has test rows of its own (x_test, y_test); leave it out")
        train, test = Part(raw.x, raw.y), Part(raw.test_x, raw.test_y)
    else:
        kept, held = hold_out(len(raw.y), job.hold_out, job.seed)
        if len(kept) == 0:
            raise UserError(f"{job.data}: all of its {len(raw.y)} row(s) would be held out for testing; give more rows or a smaller --hold-out")
        train, test = Part(raw.x, raw.y, kept), Part(raw.x, raw.y, held)
    check_room(job.data, job.dtype, train, test)
    if raw.y.dtype.kind == "f":
        return _Parts(raw.name, train, test, raw.y.shape[1], Targets.fit(raw.name, train.y, test.y), raw.notes, raw.coding)
    return _Parts(raw.name, train, test, int(raw.y.max()) + 1, None, raw.notes, raw.coding)


def _about(parts: _Parts) -> tuple[Any, ...]:
    """Return what every rank has to know of the data before they are shared."""
    train, test = parts.train, parts.test
    return parts.name, train.n, test.n, train.x.shape[1], parts.n_outputs, train.dtype.str, test.dtype.str, parts.targets, parts.notes


def check_room(source: str, dtype: str, *parts: Part) -> None:
    """Refuse sparse rows that have no room as dense ones, which training needs."""
    if not any(part.is_sparse for part in parts):
        return
    width = parts[0].x.shape[1]
    wanted = sum(part.n * width * (part.dtype.itemsize + np.dtype(dtype).itemsize) for part in parts)
    room = min((free for free in (memory_nbytes(), shared_memory_nbytes()) if free is not None), default=None)
    if room is not None and wanted > 0.9 * room:
        n = sum(part.n for part in parts)
        raise UserError(
            f"{source}: {n} sparse rows x {width} features take {wanted / 1e9:.3g} GB as dense rows, {room / 1e9:.3g} GB are free; give fewer features or rows"
        )
