"""Share sparse rows between the ranks of a host as they are, where the scaling leaves zeros zero; what else of a job they do not go with.

    --scale none, maxabs    rows stay sparse: a clock touches only the weights of features that occur in it
    --scale standard, minmax    zeros become other numbers, and the rows dense ones
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidml.core.csr import Csr
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.data.readers import is_sparse
from mpidml.data.scaling import KEEP_ZEROS, Scaler
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm

Sizes = tuple[int, int]
"""Rows, and the values that they store."""


def stay_sparse(scale: str, x: Any) -> bool:
    """Tell whether rows as they were read are sparse, and are after scaling."""
    return hasattr(x, "indptr") and scale in KEEP_ZEROS


def refuse_on_disk(job: Job) -> None:
    """Refuse a limit of memory for files of sparse rows that stay sparse: on the disk rows are dense."""
    if job.memory and job.scale in KEEP_ZEROS and is_sparse(job.data):
        raise UserError(
            f"--memory {job.memory}: the rows of {job.data} are sparse and stay so under --scale {job.scale}, and such rows are held in memory; "
            "leave it out, or make them dense with --scale standard"
        )


def as_csr(x: Any, rows: Array | None) -> Any:
    """Return the named rows (None: all) as a scipy.sparse CSR matrix without repeated columns; those of a test part may have been dense."""
    if not hasattr(x, "indptr"):
        from scipy.sparse import csr_matrix

        x = csr_matrix(x)
    x = x if rows is None else x[rows]
    if not x.has_canonical_format:  # what is repeated is summed before the largest value is looked for
        x = x.copy()
        x.sum_duplicates()
    return x


def fit(matrix: Any, kind: str) -> Scaler:
    """Fit the scaling to the training rows; the largest of values is the same in whatever order they come."""
    most = np.zeros(matrix.shape[1])
    if kind == "maxabs":
        np.maximum.at(most, matrix.indices, np.abs(matrix.data).astype(np.float64))
    return Scaler.of_most(most) if kind == "maxabs" else Scaler(most, np.ones(len(most)))


def share(name: str, job: Job, comm: CountedComm, matrices: Sequence[Any] | None, n_features: int, scaler: Scaler | None) -> tuple[list[Csr], Scaler]:
    """Scale CSR matrices in the job's dtype and put them into windows of the host; also return the scaling, fitted to the first one unless it is given.

    Collective on the host's ranks; the first one gives the matrices, the others None. UserError on all where a value is too large.
    """

    def scaled() -> list[Csr]:
        nonlocal scaler
        if matrices is None:
            return []
        scaler = fit(matrices[0], job.scale) if scaler is None else scaler
        return [_scaled(name, job.dtype, matrix, scaler) for matrix in matrices]

    found = agree(comm, scaled)
    sizes: list[Sizes] = comm.host.bcast([(len(x), x.n_stored) for x in found], 0)
    factor = comm.shared(n_features, np.float64)
    if found and scaler is not None:
        factor[:] = scaler.factor
    shared = []
    for i, (n, n_stored) in enumerate(sizes):
        arrays = comm.shared(n + 1, np.int64), comm.shared(n_stored, np.int32), comm.shared(n_stored, job.dtype)
        for own, to in zip(found[i].arrays if found else (), arrays, strict=False):
            to[:] = own
        shared.append(Csr(*arrays, n_features))
    comm.Barrier()
    return shared, Scaler(np.zeros(n_features), factor.copy())


def _scaled(name: str, dtype: str, matrix: Any, scaler: Scaler) -> Csr:
    x = Csr.of(matrix, scaler.factor, dtype)
    if not np.isfinite(x.values).all():
        largest = np.abs(matrix.data.astype(np.float64)).max()
        raise UserError(f"{name}: values reach {largest:.3g}, more than {dtype} holds after --scale; use --scale maxabs or --dtype float64")
    return x


def check(job: Job, data: Any, strategy: Any) -> None:
    """Refuse what sparse rows do not go with: pulls and pushes of rows need to know beforehand which samples a worker computes on, and on the servers their optimizer."""
    if not data.is_sparse or job.scale not in KEEP_ZEROS:
        return
    why = f"the rows of {data.name} are sparse and stay so under --scale {job.scale}; "
    dense = "or make them dense with --scale standard"
    if job.strategy != Job.strategy:
        raise UserError(f"--strategy {job.strategy}: {why}only servers take the gradients of a few rows; use --strategy {Job.strategy}, {dense}")
    if data.heads:
        raise UserError(f"--model {job.model}: {why}nets of several heads read dense rows; {dense.removeprefix('or ')}")
    if strategy.policy.gate_at:
        raise UserError(f"--sync {job.sync}: {why}a policy that grants clocks does not say before whose features are to be read; use bsp, ssp or asp, {dense}")
    given = {
        "assign": ("dynamic", "the features of a block are read before it is assigned; use --assign static"),
        "optimize": ("workers", "the state of a feature lies where its weights are; use --optimize servers"),
        "early_push": ("on", "a gradient of rows is whole only at its end; use --early-push auto"),
    }
    for name, (value, what) in given.items():
        if getattr(job, name) == value:
            raise UserError(f"--{name.replace('_', '-')} {value}: {why}{what}, {dense}")
    if job.compress:
        raise UserError(f"--compress {job.compress}: {why}other few weights travel each clock, a code is of all; leave it out, {dense}")
    if job.reads != "fresh":
        raise UserError(f"--reads {job.reads}: {why}their weights are read by the features that occur, others each clock; use --reads fresh, {dense}")
    stateful = [type(link).__name__.lower() for link in (strategy.before.links if strategy.before else ()) if link.init(1, job.dtype)]
    if stateful:
        raise UserError(f"--optimizer {job.optimizer}: {why}'{stateful[0]}', before a link that needs all of a gradient, keeps state on the workers; put it last, {dense}")
