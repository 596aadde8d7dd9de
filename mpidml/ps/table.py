"""Describe a table: rows of equal width, cut over servers, with one rule for what a pushed delta does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.partition import Shard
from mpidml.optim.base import Chain

READS = ("fresh", "cached", "eager")


class TableSpec(NamedTuple):
    """One table of n_rows x width. `first_role` numbers its first shard's role.

    `update` None adds deltas (then a worker reads its own writes); a Chain treats them as gradients.
    `reads`: `fresh` asks for every read, `cached` keeps a copy while the policy allows it (Petuum's SSP), `eager` lets the server
    push what was asked for before whenever its clock advances (ESSP: Dai et al., AAAI 2015). Listed rows are always asked for, except by a
    CachingClient.
    `in_place`: readers look into the server's own buffers through a window of the host; a reply is only the permission.
    """

    name: str
    n_rows: int
    width: int
    dtype: np.dtype[Any]
    shards: Sequence[Shard]
    first_role: int
    update: Chain | None = None
    reads: str = "fresh"
    in_place: bool = False


def n_versions(in_place: bool, by_clock: bool, bound: int | None, repeat: bool) -> int:
    """Return how many copies of the values a shard needs so that no version is overwritten while somebody may read it.

    One live copy where deltas count on arrival. By clock, a reader of version v has pushed clock v before version v + 1 closes; readers
    may be `bound` versions back in repeat mode; in place, the next version is written while the last one is still read.
    """
    if not by_clock:
        return 1
    back = bound if repeat and bound is not None else 0
    return back + (2 if in_place else 1)
