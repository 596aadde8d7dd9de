"""Share the parameter sets of a test out between the two largest numbers of ranks, which take the longest: each set runs at one of them, and at all smaller."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable

FEW = 3
"""Sets of a test up to which all run everywhere."""


def others(names: Iterable[str], larger: bool) -> set[str]:
    """Return which tests are the other number's, `larger` or not: of each function with more than a few sets the larger takes a third, the smaller the rest.

    Which they are depends on the names alone, and on no order of them: a set of neighbours would be sets with one value of a parameter.
    """
    functions = defaultdict(list)
    for name in names:
        functions[name.partition("[")[0]].append(name)
    found: set[str] = set()
    for sets in functions.values():
        drawn = sorted(sets, key=lambda name: (zlib.crc32(name.encode()), name))
        n = len(sets) // 3
        if len(sets) > FEW:
            found.update(drawn[n:] if larger else drawn[:n])
    return found
