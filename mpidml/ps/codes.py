"""Hold what a run that goes by codes has besides: a coder for each worker, the copies that each shard knows of; and save and restore it.

compress.<w>.<tensor>.residual   what worker w's codes have left of its gradients; other arrays of the codec likewise
compress.copy                    what all workers hold of the values, elements lo to hi from each shard, as of the clock in compress.version
compress.copy.<w>                where each worker holds a copy of its own
compress.answers.<tensor>.<key>  arrays of the codec on the servers (there is no residual: it is in the difference to the copy)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.compression.base import Compressor, make_codec
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.nn.network import Network
from mpidml.optim.base import Chain
from mpidml.ps.coded import UNKNOWN, CodedClient, CodedStore, Copy, codes_answers, shares
from mpidml.ps.coded_there import CodedStoreThere
from mpidml.ps.table import TableSpec
from mpidml.sync.base import SyncPolicy


class Codes:
    """Make the stores of a run by codes, and the clients of those `workers` of `n_workers` that run here; one table holds all parameters of `net`.

    `starts`: where alone shards may begin, for a codec that needs tensors in full; empty where they may begin anywhere. `kernels`: of a device on which
    gradients and what workers read lie, and codes are made and read.
    """

    def __init__(self, job: Job, net: Network, workers: Sequence[int], n_workers: int, policy: SyncPolicy, by_clock: bool, kernels: Any = None) -> None:
        self.job, self.net, self.n_workers, self.policy, self.by_clock = job, net, n_workers, policy, by_clock
        self.shares = shares(policy, by_clock)
        self.kernels = kernels
        self.coders = {worker: self._coder(kernels or net.backend, worker) for worker in workers}
        self.clients: dict[int, CodedClient] = {}
        self.stores: list[CodedStore] = []
        self.starts = [of.start for of in net.params.slices.values()] if make_codec(job.compress).whole else []

    def _coder(self, backend: Any, sender: int, held: tuple[int, int] | None = None) -> Compressor:
        net = self.net
        with backend.naming("what codes leave"):
            return Compressor(make_codec(self.job.compress), net.params, net.dtype, backend, self.job.seed, sender, held)

    def store(self, versions: Sequence[Array], lo: int, width: int, backend: Any, chain: Chain | None, kernels: Any = None) -> CodedStore:
        """Make the store of the shard that begins at element `lo`."""
        coder = self._coder(self.kernels or backend, self.n_workers, (lo, lo + versions[0].size))  # servers draw noise of their own
        make = CodedStoreThere if self.kernels is not None else CodedStore
        self.stores.append(make(versions, lo, width, backend, chain, coder, self.n_workers, self.shares, kernels))
        return self.stores[-1]

    def client(self, tables: Sequence[TableSpec], worker: int, allocate: Callable[[int], Any]) -> CodedClient:
        """Make a client of a worker; what its codes have left, and its copies, are kept from one to the next."""
        before = self.clients.get(worker)
        self.clients[worker] = found = CodedClient(tables, self.policy, self.by_clock, self.coders[worker], allocate)
        if before is not None:
            found.go_on_from(before)
        return found

    def kept(self) -> list[tuple[str, int, int, Array]]:
        """List what is to be saved of the workers and shards of this process: name, first element, elements in all, array (1-D)."""
        found = [
            (f"compress.{worker}.{name}", 0, array.size, coder.backend.host(array).reshape(-1))
            for worker, coder in self.coders.items()
            for name, array in coder.state().items()
        ]
        for store in self.stores:
            found += [(name, 0, array.size, array.reshape(-1)) for name, array in self._answers(store)]
            for worker, copy in enumerate(store.copies[: 1 if self.shares else None]):
                if copy is not None:
                    found.append(("compress.copy" if self.shares else f"compress.copy.{worker}", store.lo, self.net.n_params, store.coder.backend.host(copy.values)))
                    if self.shares and not store.lo:
                        found.append(("compress.version", 0, 1, np.array([copy.version])))
        return found

    def _answers(self, store: CodedStore) -> list[tuple[str, Array]]:
        return [(f"compress.answers.{name}", store.coder.backend.host(array)) for name, array in self._kept(store)]

    def _kept(self, store: CodedStore) -> list[tuple[str, Any]]:
        return [(name, array) for name, array in store.coder.state().items() if not name.endswith(".residual")]

    def restore(self, read: Callable[[str, int, Array], bool], n_before: int) -> None:
        """Let `read(name, first element, out)` fill what `n_before` workers had: where they are as many now, all of it as it was.

        Else what all their codes have left is shared out evenly, and a worker whose copy is not known is sent its first values in full.
        """
        for worker, coder in self.coders.items():
            for name, array in coder.state().items():
                flat = (here := coder.backend.host(array)).reshape(-1)
                if n_before == self.n_workers:
                    read(f"compress.{worker}.{name}", 0, flat)
                else:
                    others = np.zeros((n_before, flat.size), flat.dtype)
                    for other in range(n_before):
                        read(f"compress.{other}.{name}", 0, others[other])
                    flat[:] = others.sum(0) / (self.n_workers if name.endswith(".residual") else n_before)
                coder.backend.put(array, here)
        for store in self.stores:
            backend, n, dtype = store.coder.backend, store.hi - store.lo, store.coder.dtype
            for (name, here), (_, array) in zip(self._answers(store), self._kept(store), strict=True):
                read(name, 0, here.reshape(-1))
                backend.put(array, here)
            version = np.array([UNKNOWN])
            if self.shares:
                read("compress.version", 0, version)
            if self.shares and read("compress.copy", store.lo, values := np.empty(n, dtype)):
                shared = Copy(backend.here(values), int(version[0]))
                for worker in range(self.n_workers):
                    store.hold(worker, shared)
            for worker in range(self.n_workers) if not self.shares and n_before == self.n_workers else ():
                if read(f"compress.copy.{worker}", store.lo, values := np.empty(n, dtype)):
                    store.hold(worker, Copy(backend.here(values), UNKNOWN))

    def words(self) -> str:
        """Name the codec, and what it is not used for."""
        return f"codes {self.job.compress}" + ("" if codes_answers(make_codec(self.job.compress)) else " of gradients, values in full")


def check_codes(job: Job, by_clock: bool, in_place: bool) -> None:
    """Refuse codes where nothing is sent, or what is sent is not whole gradients and whole values; of no codes nothing is to be said."""
    if not job.compress:
        return
    codec, flag = make_codec(job.compress), f"--compress {job.compress}"
    if job.budget:
        raise UserError(f"{flag}: encodes a gradient as a whole, --budget {job.budget:g} sends it in pieces; leave one of them out")
    if job.optimize == "workers":
        raise UserError(
            f"{flag}: --optimize workers adds to a worker's reads what it has sent, as it was before it was encoded; use --optimize servers"
        )
    if job.reads != "fresh":
        raise UserError(
            f"{flag}: sends what has changed since the last answer, --reads {job.reads} does not ask for each; use --reads fresh, or leave it out"
        )
    if in_place:
        raise UserError(f"{flag}: is off where all ranks share memory, for nothing is sent there; add --transport mpi, or leave it out")
    if codec.votes and not by_clock:
        raise UserError(
            f"{flag}: counts the votes of a clock, under --sync {job.sync} each gradient counts by itself; use --sync bsp, or a codec such as one_bit"
        )
