"""Say what is asked of the ranks that hold one split network: how a width is cut, and sums over all of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

from mpidml.core.errors import UserError
from mpidml.core.flat import Array
from mpidml.nn.layers.base import Thunk


class Line(Protocol):
    """The ranks 0 to size - 1, of which this is `rank`. Every rank plans, and then calls, the same sums in the same order."""

    rank: int
    size: int

    def edges(self, n: int) -> list[int]:
        """Return the size + 1 edges of a width n, from 0 to n, the same on every rank; a rank may get nothing."""

    def sum(self, buffer: Array) -> Callable[[], object]:
        """Return a call that sums `buffer`, 1-D and contiguous, over the ranks in place and waits for it: the same bits on every rank."""

    def most(self, buffer: Array) -> Callable[[], object]:
        """Return a call that leaves each element's largest value over the ranks in `buffer`."""


def own(line: Line, n: int) -> slice:
    """Return this rank's part of a width n; UserError for edges that do not cut it."""
    edges = [int(edge) for edge in line.edges(n)]
    if len(edges) != line.size + 1 or edges[0] != 0 or edges[-1] != n or any(lo > hi for lo, hi in pairwise(edges)):
        raise UserError(f"tensor line: edges {edges} do not cut a width of {n} over {line.size} rank(s); give {line.size + 1} from 0 to {n}")
    return slice(edges[line.rank], edges[line.rank + 1])


def summed(line: Line, buffer: Array) -> Thunk:
    """Return the call that sums `buffer` over the line in place, whatever its shape; ValueError if it is not contiguous: the sum would be lost."""
    if not buffer.flags.c_contiguous:
        raise ValueError(f"tensor line: a buffer of shape {buffer.shape} is not contiguous, and cannot be summed in place")
    return line.sum(buffer.reshape(-1)), ()


def gathered(backend: Any, line: Line, part: Array, whole: Array) -> list[Thunk]:
    """Return the calls that lay this rank's columns `part` (m, own) beside those of the others in `whole` (m, n), by a sum with zeros."""
    return [(whole.fill, (0,)), (backend.copy, (whole[:, own(line, whole.shape[1])], part)), summed(line, whole)]
