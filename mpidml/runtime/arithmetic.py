"""Load the compiled arithmetic on every rank, once compiled for each host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpidml_kernels import CODES, adaptive, backend, cache, csr, is_compiled, rows, split

from mpidml.core.device import Device
from mpidml.core.grid import ProcessGrid
from mpidml.core.job import Job
from mpidml.nn.network import Network
from mpidml.optim.base import make_chain
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.summary import say


def beyond(job: Job, is_sparse: bool, net: Network, grid: ProcessGrid | None) -> tuple[Any, ...]:
    """Return the families of kernels that a job calls beside those of every network: of its layers, layers in parts, optimizer, sparse rows, codes."""
    normalises = any(link.normalised for link in make_chain(job.optimizer, job.rate).links)
    in_parts = bool(job.mix) or (grid is not None and grid.sizes["tensor"] > 1)
    of_layers = (family for layer in net.layers for family in layer.families)
    found = (*of_layers, *(split,) * in_parts, *(adaptive,) * normalises, *(csr, rows) * is_sparse, *CODES * bool(job.compress))
    return tuple(dict.fromkeys(found))


def compiled(job: Job, comm: CountedComm, quiet: bool, more: Sequence[Any] = ()) -> Any:
    """Load the arithmetic for the job's type, and `more` families of kernels; what a host lacks its first rank compiles while the others sleep (Collective on comm).

    That rank also finds the folder of the cache for all of them. Another job that compiles the same is waited for by a lock, see `cache.once`.
    """
    name, leads = job.backend, comm.host.rank == 0
    if name == "numba":
        said = cache.prepare() if leads else ""
        if said and comm.rank == 0 and not quiet:
            say(said)
        if path := comm.host.bcast(os.environ[cache.VARIABLE] if leads else None, 0):
            cache.use(path)
    if comm.host.bcast(name == "numba" and not is_compiled(*more) if leads else None, 0):
        if leads:
            if comm.rank == 0 and not quiet:
                say("compiling kernels, once for this machine: up to half a minute; `python -m mpidml warm` does it beforehand ...")
            backend(name).load(*more)
        comm.host.Barrier()
    found = backend(name)
    found.load(*more)
    found.fetch(np.dtype(job.dtype).str[1:])
    return found


def compile_on(device: Device, job: Job, more: Sequence[Any]) -> None:
    """Compile what a device computes in passes and updates, for the job's type: a first run's kernels take seconds. Codes are left to whoever makes them there."""
    if device.kernels is not None:
        device.kernels.load(*(family for family in more if family not in CODES))
        device.kernels.fetch(np.dtype(job.dtype).str[1:])
