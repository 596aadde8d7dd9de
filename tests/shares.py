"""Share the parameter sets of a test out between numbers of ranks, of which the largest take the longest: each set runs at one of them that shows it."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

FEW = 3
"""Sets of a test up to which all run everywhere."""


def others(tests: Mapping[str, int], size: int, sizes: Sequence[int]) -> set[str]:
    """Return which of `tests` do not run on `size` ranks: of each function with more than a few sets the `sizes`, which rise, take parts as 3 : 2 : 1.

    Each test has the least number of ranks that shows what it is about: larger numbers share all such sets as 2 : 1, and smaller ones take their part besides.
    Which they are depends on the names alone, and on no order of them: a set of neighbours would be sets with one value of a parameter.
    """
    functions = defaultdict(list)
    for name, least in tests.items():
        functions[name.partition("[")[0], least].append(name)
    found: set[str] = set()
    for (_, least), sets in functions.items():
        if len(sets) > FEW:
            showing = [each for each in sizes if each >= least]
            found.update(set(sets) - _part(sets, size, showing if size in showing else sizes))
    return found


def _part(sets: Sequence[str], size: int, sizes: Sequence[int]) -> set[str]:
    drawn = sorted(sets, key=lambda name: (zlib.crc32(name.encode()), name))
    n, total, lo = len(drawn), len(sizes) * (len(sizes) + 1) // 2, 0
    for k, each in enumerate(reversed(sizes), 1):
        hi = n if each == sizes[0] else lo + max(1, n * k // total)
        if each == size:
            return set(drawn[lo:hi])
        lo = hi
    raise ValueError(f"{size} ranks share nothing: those that do are {sizes}")
