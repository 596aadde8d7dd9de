"""Cut a range of rows over servers by bytes: contiguous ranges, so that finding a row's server is a binary search.

rows     0 ............................................ n
servers  |      0      |      1      |      2       |        max / mean size <= 1 + alignment
parts    |   a   |        b       |         c       |        (ranges of a gradient that become final together)
shards   |   a0  | b0  |  b1  |  c1 |      c2       |        one shard = one role
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class Shard(NamedTuple):
    """Rows [lo, hi) of a table, held by server number `server`."""

    lo: int
    hi: int
    server: int


def cut(n_rows: int, n_servers: int, align: int = 1) -> list[int]:
    """Return the n_servers + 1 edges of a cut into ranges that differ by at most `align` rows; inner edges are multiples of `align`."""
    if n_rows < n_servers * align:
        align = 1
    n_blocks = -(-n_rows // align)
    return [i * n_blocks // n_servers * align for i in range(n_servers)] + [n_rows]


def weighted_cut(n: int, weights: Sequence[float]) -> list[int]:
    """Return the len(weights) + 1 edges of a cut of n elements in the proportion of `weights`; a part of weight 0 is empty.

    ValueError for weights that are negative, no numbers, or all 0.
    """
    total = math.fsum(weights)
    if not (all(weight >= 0 for weight in weights) and 0 < total < math.inf):
        raise ValueError(f"weights {', '.join(f'{weight:g}' for weight in weights)} cut nothing; give numbers from 0 up, not all of them 0")
    last = max(i for i, weight in enumerate(weights) if weight)  # rounding leaves no rest to a part of weight 0
    return [n if i > last else min(n, round(n * before / total)) for i, before in enumerate(accumulate(weights, initial=0.0))]


def shards(n_rows: int, n_servers: int, parts: Sequence[tuple[int, int]] = (), align: int = 1, starts: Sequence[int] = ()) -> list[Shard]:
    """Cut rows over servers, and again at the edges of `parts`, so that each shard lies in one part and on one server.

    `starts`: the only places (0 is one) where the servers' ranges may begin; then some server may be left without any row.
    """
    edges = cut(n_rows, n_servers, align)
    if starts:
        edges = [min([*starts, n_rows], key=lambda start: abs(start - at)) for at in edges]
    every = sorted({*edges, *(e for part in parts for e in part)})
    return [Shard(lo, hi, min(bisect_right(edges, lo) - 1, n_servers - 1)) for lo, hi in pairwise(every)]


def merge_parts(parts: Sequence[tuple[int, int]], n_least: int) -> list[tuple[int, int]]:
    """Join neighbouring parts (in the order in which they become final, high rows first) until each but the last holds n_least rows."""
    merged: list[tuple[int, int]] = []
    for lo, hi in parts:
        if merged and merged[-1][1] - merged[-1][0] < n_least and hi == merged[-1][0]:
            merged[-1] = (lo, merged[-1][1])
        else:
            merged.append((lo, hi))
    return merged
