"""Bring the final parameters to rank 0, from a rank that has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml.runtime.comm import CountedComm
from mpidml.runtime.wire import pieces

VALUES_TAG = 9


def bring(strategy: Any, comm: CountedComm) -> Any:
    """Bring the final parameters to rank 0 (Collective on comm)."""
    values: Any = strategy.final_values()
    source = strategy.placement.worker_ranks[0]
    if source != 0 and strategy.table is None:
        if comm.rank == source:
            for piece in pieces(values):
                comm.Isend(piece, 0, VALUES_TAG).Wait()
        elif comm.rank == 0:
            values = np.empty(strategy.net.n_params, strategy.net.dtype)
            for piece in pieces(values):
                comm.Irecv(piece, source, VALUES_TAG).Wait()
    return values
