"""Give a worker its tables as calls that a plain script makes: pull, push, clock.

    def main(tables):                                    # runs on the ranks that are workers
        w = tables["w"]
        for step in range(100):
            values = w.pull(rows).wait()
            w.push(gradient(values), rows)
            tables.clock()

    mpidml.run_tables(main, {"w": (1_000_000, 16)}, sync="ssp:3", servers="1")

The calls of a worker are served by the same roles and driver that train networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from mpidml_kernels import backend

from mpidml.core.buffers import Buffers
from mpidml.core.errors import UserError, nearest
from mpidml.core.partition import shards
from mpidml.core.placement import place
from mpidml.core.role import Array, Role
from mpidml.optim.base import Chain, make_chain
from mpidml.ps.budget import ORDERS
from mpidml.ps.managed import make_client
from mpidml.ps.shard import Shard
from mpidml.ps.store import Store
from mpidml.ps.table import READS, TableSpec, n_versions
from mpidml.runtime import abort
from mpidml.runtime.agree import agree
from mpidml.runtime.bell import Bell
from mpidml.runtime.comm import CountedComm, world
from mpidml.runtime.driver import Driver
from mpidml.runtime.memory import WindowBuffers
from mpidml.runtime.session import Reading, Session, Writing
from mpidml.runtime.signals import Terminated
from mpidml.runtime.threads import limit_threads
from mpidml.sync.base import make_policy

WINDOW_NBYTES = 32 << 20
EAGER_CANNOT_REPEAT = "deterministic: with eager reads a staleness above 1 depends on when rows arrive; use fresh or cached reads"


class Table:
    """One table as a worker sees it, the same under every policy."""

    def __init__(self, session: Session, number: int) -> None:
        self._session, self._number = session, number
        self.spec = session.client.tables[number]

    def pull(self, rows: Any = None, out: Array | None = None, latest: bool = False) -> Reading:
        """Ask for all rows (None), a block (a slice) or listed rows (integers, any order, repeats allowed); values land in `out`.

        `latest`: wait for the updates of all workers up to this clock, whatever the policy allows (a barrier for this read).
        Cost: one message to and from each server that holds any of them, n rows x width elements of payload.
        """
        rows, block = self._where(rows)
        n = rows.size if rows is not None else block[1] - block[0] if block is not None else self.spec.n_rows
        if out is not None and (out.shape != (n, self.spec.width) or out.dtype != self.spec.dtype or not out.flags.c_contiguous):
            raise ValueError(
                f"table {self.spec.name}: out has shape {out.shape} and dtype {out.dtype}; give a contiguous {self.spec.dtype} array of shape {(n, self.spec.width)}"
            )
        return self._session.pull(self._number, rows, out, block, latest)

    def push(self, delta: Array, rows: Any = None) -> Writing:
        """Send `delta` (rows x width, or flat): added to the values, or a gradient for the table's optimizer. Counts when the policy says."""
        rows, block = self._where(rows)
        n = rows.size if rows is not None else block[1] - block[0] if block is not None else self.spec.n_rows
        if np.shape(delta) not in ((n, self.spec.width), (n * self.spec.width,)):
            raise ValueError(f"table {self.spec.name}: the delta has shape {np.shape(delta)}; give {n} rows of width {self.spec.width}")
        if not np.can_cast(kind := np.asarray(delta).dtype, self.spec.dtype, "same_kind"):
            raise ValueError(f"table {self.spec.name}: the delta is {kind}, which {self.spec.dtype} does not hold; give real numbers")
        return self._session.push(self._number, delta, rows, block)

    def _where(self, rows: Any) -> tuple[Array | None, tuple[int, int] | None]:
        n = self.spec.n_rows
        if rows is None:
            return None, None
        if isinstance(rows, slice):
            lo, hi, step = rows.indices(n)
            if step != 1:
                raise ValueError(f"table {self.spec.name}: a block has step 1, not {step}; list the rows instead")
            return None, (lo, max(lo, hi))
        listed = np.atleast_1d(np.asarray(rows))
        if listed.ndim != 1 or (listed.dtype.kind not in "iu" and listed.size):
            raise ValueError(f"table {self.spec.name}: rows are {listed.dtype} of shape {listed.shape}; list whole numbers, or give a slice")
        listed = listed.astype(np.int64)
        if listed.size and not 0 <= listed.min() <= listed.max() < n:
            raise IndexError(f"table {self.spec.name}: rows {listed.min()} to {listed.max()} are not all in 0..{n - 1}; correct the row numbers")
        return listed, None


class Tables(Mapping[str, Table]):
    """All tables of a worker by name; `clock` ends one iteration of this worker; `worker` and `n_workers` say who it is."""

    def __init__(self, session: Session, worker: int, n_workers: int) -> None:
        self._session, self.worker, self.n_workers = session, worker, n_workers
        self._tables = {spec.name: Table(session, i) for i, spec in enumerate(session.client.tables)}

    def __getitem__(self, name: str) -> Table:
        return self._tables[name]

    def __iter__(self) -> Any:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def clock(self) -> None:
        """End this worker's clock; its pushes of the clock count from now on for every reader's staleness."""
        self._session.clock()


def run_tables(
    main: Callable[[Tables], Any],
    tables: Mapping[str, tuple[int, int]],
    sync: str = "ssp:1",
    servers: str = "colocated",
    optimizer: str = "",
    lr: float = 0.1,
    dtype: str = "float32",
    reads: str = "fresh",
    initial: Mapping[str, Array] | None = None,
    deterministic: bool = False,
    comm: CountedComm | None = None,
    wait_limit: float = 300.0,
    cache_rows: int = 0,
    budget: float = 0.0,
    order: str = "fifo",
    tune: bool = True,
) -> Any:
    """Serve `tables` (name -> (rows, width)) and run `main(tables)` on every worker; return its result there, None on servers (Collective).

    Values start at 0 or at rank 0's `initial[name]`, rows x width or flat. `optimizer` "" adds what is pushed; else pushes are gradients for it,
    at rate `lr`: each worker's share of the gradient, which is its part of the mean over the samples of all workers. `tune` softens those that were
    computed from stale values (the last that the worker read) by the policy's rule.
    `reads` "cached" needs a policy with a bound, which says when a copy is too old. `cache_rows`, beside it: each worker keeps at most so many rows of
    each table that it reads by listed rows, and asks for one again when the policy demands it. `budget`: bytes of updates that a worker sends a
    second (0: no limit); what is above waits and is summed up, and goes out in an `order`: "fifo", "random" or "magnitude" (the largest first).
    Without `comm`, on several ranks, an uncaught exception or a signal on one rank ends them all from now on.
    """
    if reads not in READS:
        raise UserError(f"reads '{reads}': there is no such choice; {nearest(reads, READS)}")
    own_comm = comm is None
    if comm is None and world().size > 1:
        abort.install(world())
    comm = CountedComm() if comm is None else comm
    if comm.size > 1:
        limit_threads()
    policy = make_policy(sync)
    if policy.gate_at:
        raise UserError(f"sync '{sync}': it grants whole clocks of a training run, a program of your own starts its clocks itself; use a policy without a gate such as ssp")
    if reads == "cached" and policy.bound is None:
        raise UserError(f"reads 'cached': under {sync} nothing says when a copy is too old, so it would never be read anew; use fresh or eager")
    if deterministic and not policy.repeatable:
        raise UserError(f"deterministic: {sync} cannot repeat, its reads depend on timing; use bsp or ssp")
    if deterministic and reads == "eager" and (policy.bound or 0) > 1:
        raise UserError(EAGER_CANNOT_REPEAT)
    _check_client(reads, deterministic, cache_rows, budget, order)
    placement = place(comm.size, str(servers))
    chain: Chain | None = make_chain(optimizer, lr) if optimizer else None
    if chain is not None and any(link.scope != "elementwise" for link in chain.links):
        raise UserError(f"optimizer '{optimizer}': a link such as clip or lars needs the whole gradient, a shard sees its own part; apply it before you push")
    if chain is None and not tune:
        raise UserError("tune False: does nothing without an optimizer, what is pushed is added as it is; leave it out")
    by_clock = deterministic or policy.commit == "clock"
    if chain is not None and not by_clock:
        chain.each_sees(1.0 / len(placement.worker_ranks))
    initial = comm.bcast(agree(comm, lambda: _checked(tables, dtype, initial if initial and comm.rank == 0 else {}, wait_limit)))
    tuned = tune and chain is not None
    specs: list[TableSpec] = []
    rank_of: list[int] = []
    for name, (n_rows, width) in tables.items():
        cut = shards(n_rows, len(placement.server_ranks))
        specs.append(TableSpec(name, n_rows, width, np.dtype(dtype), cut, len(rank_of), chain, reads))
        rank_of += [placement.server_ranks[s.server] for s in cut]
    workers = range(len(rank_of), len(rank_of) + len(placement.worker_ranks))
    rank_of += placement.worker_ranks
    buffers = WindowBuffers(comm.host, WINDOW_NBYTES) if comm.size > 1 and comm.fits(comm.host.size * WINDOW_NBYTES) else None
    bell = Bell(comm.host) if buffers is not None and comm.one_host else None
    pool = buffers or Buffers()
    arithmetic = backend("numba")
    roles: dict[int, Role] = {}
    for spec in specs:
        for i, shard in enumerate(spec.shards):
            if rank_of[spec.first_role + i] != comm.rank:
                continue
            versions = [
                np.zeros((shard.hi - shard.lo) * spec.width, spec.dtype) for _ in range(n_versions(False, by_clock, policy.bound, deterministic))
            ]
            if spec.name in initial:
                versions[0][:] = initial[spec.name][shard.lo : shard.hi].ravel()
            store = Store(versions, shard.lo, spec.width, arithmetic, chain)
            roles[spec.first_role + i] = Shard(spec.name, workers, policy, store, pool.allocate, repeat=deterministic, tuned=tuned, eager=reads == "eager")
    session = None
    for worker, number in enumerate(workers):
        if rank_of[number] == comm.rank:
            client = make_client(specs, policy, by_clock, cache_rows=cache_rows, budget=float(budget), order=order, seed=worker)
            session = roles[number] = Session(client, pool)
            faces = Tables(session, worker, len(workers))
    driver = Driver(comm, roles, rank_of, buffers, bell, wait_limit_seconds=wait_limit)
    result = None
    with abort.limit_waits(wait_limit):
        comm.Barrier()
        if session is None:
            driver.run()
        else:
            session.attach(driver)
            try:
                result = main(faces)
            except Terminated:
                raise
            except SystemExit as end:
                raise RuntimeError(f"worker {faces.worker}: main ended by sys.exit({end.code}); return from it instead, so that servers go on") from None
            session.close()
        comm.Barrier()
    if bell is not None:
        bell.close()
    if buffers is not None:
        buffers.free()
    if own_comm:
        comm.free()
    return result


def _check_client(reads: str, deterministic: bool, cache_rows: int, budget: float, order: str) -> None:
    """Raise UserError for a cache or a budget that cannot be, or that would do nothing."""
    if isinstance(cache_rows, bool) or not isinstance(cache_rows, int | np.integer) or cache_rows < 0:
        raise UserError(f"cache_rows {cache_rows!r}: is not a number of rows; give a whole number from 0 up")
    if cache_rows and reads != "cached":
        raise UserError(f"cache_rows {cache_rows}: does nothing beside reads='{reads}'; use reads='cached', or leave it out")
    if cache_rows and deterministic:
        raise UserError("deterministic: what a cache of rows holds depends on when answers arrive; leave cache_rows out")
    if order not in ORDERS:
        raise UserError(f"order '{order}': there is no such choice; {nearest(order, ORDERS)}")
    if not (isinstance(budget, int | float) and math.isfinite(budget) and budget >= 0):
        raise UserError(f"budget {budget!r}: is not a number of bytes a second; give one from 0 up")
    if order != ORDERS[0] and not budget:
        raise UserError(f"order '{order}': does nothing without a budget; give one, or leave it out")
    if budget and deterministic:
        raise UserError("deterministic: what a budget lets through depends on timing; leave one of them out")


def _checked(tables: Mapping[str, tuple[int, int]], dtype: str, initial: Mapping[str, Array], wait_limit: float) -> dict[str, Array]:
    """Return the initial values as rows x width; UserError for sizes, types and names that cannot be."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise UserError(f"tables: {np.dtype(dtype)} is not a dtype of theirs; choose float32 or float64")
    if not wait_limit > 0:
        raise UserError(f"wait_limit {wait_limit}: is not a positive number of seconds; give one such as 300")
    if not tables:
        raise UserError("tables: none is named, so there is nothing to serve; give one as {'w': (rows, width)}")
    for name, shape in tables.items():
        if not (isinstance(shape, tuple | list) and len(shape) == 2 and all(isinstance(n, int | np.integer) and n >= 1 for n in shape)):
            raise UserError(f"table '{name}': {shape!r} is not its size; give (rows, width), two whole numbers from 1 up")
    found = {}
    for name, values in initial.items():
        if name not in tables:
            raise UserError(f"initial: there is no table '{name}'; {nearest(name, tables)}")
        n_rows, width = tables[name]
        if np.shape(values) not in ((n_rows, width), (n_rows * width,)):
            raise UserError(f"initial: values of table '{name}' have shape {np.shape(values)}, the table has {(n_rows, width)}; give one value each")
        found[name] = np.asarray(values, dtype).reshape(n_rows, width)
    return found
