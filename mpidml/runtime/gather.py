"""Bring all parameters together from the stores of the servers, once nobody changes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.watched import until
from mpidml.runtime.wire import pieces

TAG = 9


def bring(strategy: Any, comm: CountedComm) -> Any:
    """Return the final parameters on rank 0, from the stores or from a rank that has them all (Collective on comm)."""
    if strategy.first is not None or not strategy.whole:
        return to_first(strategy, comm)
    values: Any = strategy.final_values()
    source = strategy.placement.worker_ranks[0]
    if source != 0 and strategy.table is None:
        with comm.blocked(f"the parameters from rank {source}"):
            if comm.rank == source:
                for piece in pieces(values):
                    until(comm.Isend(piece, 0, TAG).Test)
            elif comm.rank == 0:
                values = np.empty(strategy.net.n_params, strategy.net.dtype)
                for piece in pieces(values):
                    until(comm.Irecv(piece, source, TAG).Test)
    return values


def to_all(strategy: Any, comm: CountedComm, out: Array) -> None:
    """Fill `out`, the network's flat parameters, on every rank (Collective on comm)."""
    for number in range(strategy.worker_roles.start):
        lo, hi = strategy.extent(number)
        if (store := strategy.stores.get(number)) is not None:
            out[lo:hi] = store.at(store.latest).ravel()
        for piece in pieces(out[lo:hi]):
            comm.Bcast(piece, strategy.rank_of[number])


def to_first(strategy: Any, comm: CountedComm) -> Array | None:
    """Return the network's flat parameters on rank 0, None on the others (Collective on comm)."""
    values = np.empty(strategy.net.n_params, strategy.net.dtype) if comm.rank == 0 else None
    for number in range(strategy.worker_roles.start):
        (lo, hi), source, store = strategy.extent(number), strategy.rank_of[number], strategy.stores.get(number)
        own = None if store is None else store.at(store.latest).ravel()
        with comm.blocked(f"the parameters from rank {source}"):
            if values is not None and own is not None:
                values[lo:hi] = own
            elif values is not None:
                for piece in pieces(values[lo:hi]):
                    until(comm.Irecv(piece, source, TAG).Test)
            elif own is not None and source == comm.rank:  # others may have the same
                for piece in pieces(own):
                    until(comm.Isend(piece, 0, TAG).Test)
    return values
