"""Join the parts of one layer where the rows of a batch are spread over the ranks that hold them: what a rank gives and takes are its own rows.

    3 ranks, rows a b c d             rank 0   | a b |      rank 1   | c |      rank 2   | d |

    Whole   bring   own rows      ->  all rows           a b c d   on every rank
            give    terms of all  ->  the sums of own rows
    Cut     bring   own rows      ->  own columns of all rows, a0 b0 c0 d0 on rank 0
            give    own columns   ->  own rows, all columns

Each is the other's way back: the gradient of what was brought is given, that of what was given is brought. A rank sends each value once to each rank that
needs it, in one round, so of a side of width n over M rows all ranks together send (P - 1) M n values if it is whole, (P - 1) M n / P if it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

from mpidml.core.flat import Array
from mpidml.core.rounds import Move, Round
from mpidml.nn.layers.base import Thunk
from mpidml.nn.split.line import Line, own
from mpidml.nn.split.part import Part


class Carrier(Line, Protocol):
    """A line that carries rounds out, too."""

    def carry(self, rounds: Sequence[Round], buffer: Array) -> Callable[[], object]:
        """Return a call that carries out this rank's `rounds` on `buffer`, 1-D and contiguous, and waits for them; every rank of the line calls it."""


class Spread:
    """The ranks of `line`, each with some rows of a batch. `counts`: how many, of each rank, in the pass that is bound next; whoever binds it sets them."""

    def __init__(self, line: Any) -> None:
        self.line: Carrier = line
        self.rank, self.size = int(line.rank), int(line.size)
        self.counts: tuple[int, ...] = (0,) * line.size

    def edges(self) -> list[int]:
        """Return where the rows of each rank begin among all rows, and the number of all."""
        return [0, *accumulate(self.counts)]

    def moved(self, flat: Array, out: Sequence[tuple[int, int]], into: Sequence[tuple[int, int]], adds: bool = False) -> list[Thunk]:
        """Return the call that sends range `out[r]` of `flat` to each other rank r, and takes, or adds, what comes from there at `into[r]`."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        moves = Round(tuple(Move(rank, *out[rank]) for rank in others), tuple(Move(rank, *into[rank]) for rank in others), adds)
        return [(self.line.carry((moves,), flat), ())] if others else []


class Side:
    """An array of `n` columns by which a layer meets its neighbours; here, all rows of `width` of them, in a flat buffer that the layer keeps."""

    width: int

    def __init__(self, spread: Spread, n: int) -> None:
        self.spread, self.n = spread, int(n)

    def room(self, m: int) -> int:
        """Return the length of a buffer where no rank has more than m rows."""
        raise NotImplementedError

    def all(self, flat: Array) -> Array:
        """Return all rows (M, width) in the buffer."""
        raise NotImplementedError

    def bring(self, backend: Any, rows: Array, flat: Array) -> list[Thunk]:
        """Return the calls that fill `all` of the ranks' own `rows` (m, n)."""
        raise NotImplementedError

    def give(self, backend: Any, flat: Array, rows: Array) -> list[Thunk]:
        """Return the calls that fill the own `rows` (m, n) of the ranks' `all`."""
        raise NotImplementedError

    def sent(self) -> tuple[int, int]:
        """Return how many values of each own row a rank sends to bring, and to give, where all ranks have as many rows."""
        raise NotImplementedError


class SpreadPart(Part):
    """A part whose x and out are the own rows, with buffers for those of all."""

    def moved(self, wants_dx: bool) -> tuple[list[int], list[int]]:
        """Return how many values of each own row a rank sends in the exchanges of a forward and of a backward pass, where all ranks have as many rows."""
        raise NotImplementedError


class Whole(Side):
    """Every rank needs all columns of all rows, and has a term of each value: rows are gathered, terms are summed where their rows belong."""

    def __init__(self, spread: Spread, n: int) -> None:
        super().__init__(spread, n)
        self.width = n

    def room(self, m: int) -> int:
        """Return the length of all rows."""
        return self.spread.size * m * self.n

    def all(self, flat: Array) -> Array:
        """Return the first rows of the buffer."""
        n_rows = sum(self.spread.counts)
        return flat[: n_rows * self.n].reshape(n_rows, self.n)

    def own(self, flat: Array) -> Array:
        """Return the own rows among all."""
        edges = self.spread.edges()
        return self.all(flat)[edges[self.spread.rank] : edges[self.spread.rank + 1]]

    def gather(self, flat: Array) -> list[Thunk]:
        """Return the call that fills the rows of the others, each of which has its own there."""
        ranges = self._ranges()
        return self.spread.moved(flat, [ranges[self.spread.rank]] * self.spread.size, ranges)

    def bring(self, backend: Any, rows: Array, flat: Array) -> list[Thunk]:
        """Return a copy and a gathering."""
        return [(backend.copy, (self.own(flat), rows)), *self.gather(flat)]

    def give(self, backend: Any, flat: Array, rows: Array) -> list[Thunk]:
        """Return the sum of own rows, terms in the order of ranks behind the own one, and a copy."""
        ranges = self._ranges()
        return [*self.spread.moved(flat, ranges, [ranges[self.spread.rank]] * self.spread.size, adds=True), (backend.copy, (rows, self.own(flat)))]

    def sent(self) -> tuple[int, int]:
        """Return a row, and terms of a row, for each other rank."""
        return ((self.spread.size - 1) * self.n,) * 2

    def _ranges(self) -> list[tuple[int, int]]:
        return [(lo * self.n, hi * self.n) for lo, hi in pairwise(self.spread.edges())]


class Cut(Side):
    """Each rank needs, and makes, its own columns of all rows: nothing is summed.

    flat    | own rows: columns of rank 0 | of rank 1 | ... | own columns: rows of rank 0 | of rank 1 | ... |
    """

    def __init__(self, spread: Spread, n: int) -> None:
        super().__init__(spread, n)
        self.columns = own(spread.line, n)
        self.width = self.columns.stop - self.columns.start
        self.edges = list(spread.line.edges(n))

    def room(self, m: int) -> int:
        """Return the length of own rows and own columns."""
        return m * self.n + self.spread.size * m * self.width

    def all(self, flat: Array) -> Array:
        """Return the own columns."""
        n_rows, at = sum(self.spread.counts), self._m * self.n
        return flat[at : at + n_rows * self.width].reshape(n_rows, self.width)

    def bring(self, backend: Any, rows: Array, flat: Array) -> list[Thunk]:
        """Return the copies that lay each rank's columns together, and the exchange."""
        return [*((backend.copy, (block, of)) for block, of in self._pairs(flat, rows)), *self.spread.moved(flat, self._blocks(), self._ranges())]

    def give(self, backend: Any, flat: Array, rows: Array) -> list[Thunk]:
        """Return the exchange, and the copies that lay columns beside each other."""
        return [*self.spread.moved(flat, self._ranges(), self._blocks()), *((backend.copy, (of, block)) for block, of in self._pairs(flat, rows))]

    def sent(self) -> tuple[int, int]:
        """Return the columns of others, and own columns of a row of each other rank."""
        return self.n - self.width, (self.spread.size - 1) * self.width

    @property
    def _m(self) -> int:
        return self.spread.counts[self.spread.rank]

    def _blocks(self) -> list[tuple[int, int]]:
        """Return where the own rows of each rank's columns lie."""
        return [(lo * self._m, hi * self._m) for lo, hi in pairwise(self.edges)]

    def _ranges(self) -> list[tuple[int, int]]:
        """Return where each rank's rows of the own columns lie."""
        first = self._m * self.n
        return [(first + lo * self.width, first + hi * self.width) for lo, hi in pairwise(self.spread.edges())]

    def _pairs(self, flat: Array, rows: Array) -> list[tuple[Array, Array]]:
        """Return of each rank's columns the own rows in the buffer, and in `rows`; the own ones lie among all rows."""
        here = self._blocks()
        here[self.spread.rank] = self._ranges()[self.spread.rank]
        return [(flat[at:to].reshape(self._m, hi - lo), rows[:, lo:hi]) for (at, to), (lo, hi) in zip(here, pairwise(self.edges), strict=True)]
