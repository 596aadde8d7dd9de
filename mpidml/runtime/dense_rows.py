"""Share dense rows between the ranks of a host, scaled with the same bits at any number of ranks; each rank scales its share of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.data.scaling import Scaler, block_range, block_sums
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.net import categories


def load(
    name: str, job: Job, comm: CountedComm, sizes: Sequence[int], n_features: int, dtypes: Sequence[str], parts: Sequence[Any] | None, before: Scaler | None
) -> tuple[list[Array], Scaler]:
    """Copy the rows of all parts, which the first rank of a host has, to where they are shared, scale them, and return the scaling (Collective on comm)."""
    # Values keep the file's precision until they are scaled: large ones that differ little would be one in float32.
    sources = [comm.shared(size * n_features, dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
    if parts is not None:
        for part, to in zip(parts, sources, strict=True):
            part.write(to.reshape(part.n, n_features))
    comm.Barrier()
    scaler = fit(job, comm, sources[0].reshape(sizes[0], n_features), before)
    return [scaled_rows(name, job.dtype, values, size, n_features, scaler, comm) for values, size in zip(sources, sizes, strict=True)], scaler


def fit(job: Job, comm: CountedComm, x: Any, before: Scaler | None) -> Scaler:
    """Return the scaling: fitted to the training rows x, unless there was one `before` (Collective on comm)."""
    # Every rank sums its own blocks of rows; all blocks, in block order, decide the scaling on every rank.
    mine = block_sums(x, *block_range(len(x), comm.rank, comm.size))
    fitted = Scaler.fit(np.concatenate(comm.allgather(mine)), job.scale).sparing(agree(comm, lambda: categories(job)))
    return fitted if before is None else before


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
