"""Save what several ranks hold parts of as if each held a range: between two steps elements go to whoever's range they lie in, and come back.

    parts of a weight       rank 0: columns 0 1 of every row        rank 1: columns 2 3
    bands                   rank 0: the upper rows                  rank 1: the lower rows          contiguous, so that a file fits any layout

Nobody holds more than its part and its band, and what goes at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpidml.core.partition import cut
from mpidml.core.role import Array
from mpidml.runtime.watched import until
from mpidml.runtime.wire import pieces

AT_ONCE = 1 << 20
"""So many elements of all ranks go at a time, each with its place: at most about 40 MB, also where all go to one rank."""


class Bands:
    """Stand for `store`, whose elements have `places` in the network's flat parameters, as for a range of them: the band of this rank of `line`.

    Together the bands are [start, stop). `shared` elements are on every rank. To whoever saves and restores it is a `Store`; all its methods that move
    values are collective on `line`.
    """

    def __init__(self, store: Any, elements: tuple[Array, Array], start: int, stop: int, line: Any) -> None:
        self.store, self.line = store, line
        self.edges = [start + edge for edge in cut(stop - start, line.size)]
        self.lo, self.hi = self.edges[line.rank : line.rank + 2]
        self.elements = elements
        self.at_once: int = max(1, AT_ONCE // line.size)
        self.tag = line.new_tag()

    @property
    def latest(self) -> int:
        """Return the number of the newest version."""
        return int(self.store.latest)

    @property
    def n_whole(self) -> int:
        """Return how many updates there were."""
        return int(self.store.n_whole)

    @property
    def optimizer(self) -> dict[str, Array]:
        """Return the optimizer's arrays, as this rank has them."""
        found: dict[str, Array] = self.store.optimizer
        return found

    def at(self, version: int) -> Array:
        """Return the band's values of a version, (band, 1)."""
        return self.to_band(self.store.at(version).ravel()).reshape(-1, 1)

    def state(self, back: int) -> dict[str, Array]:
        """Return the band's part of what the store would return; its counts of rows that were updated apart are none."""
        return {name: self.to_band(array) for name, array in self.store.state(back).items()}

    def restore(self, clock: int, fill: Callable[[str, Array], bool]) -> None:
        """Let `fill` fill the arrays of `state`."""

        def fill_part(name: str, out: Array) -> bool:
            band = np.empty(self.hi - self.lo, out.dtype)
            known = fill(name, band)
            if all(self.line.allgather(known)):
                self.from_band(band, out)
            return known

        self.store.restore(clock, fill_part)

    def count(self, whole: Array, fill: Callable[[str, Array], bool]) -> None:
        """Learn how many updates there were: all at once."""
        self.store.n_whole = max(self.line.allgather(int(whole.min()) if whole.size else 0))

    def put(self, values: Array) -> None:
        """Take the newest values from bands."""
        newest = self.store.at(self.store.latest)
        self.from_band(values.ravel(), newest.ravel())
        self.store.put(newest)  # a device that the store has is told of it

    def _of(self, band: int, turn: int, also_shared: bool) -> Array:
        """Return which of the own elements that have a turn lie in a band: their numbers here."""
        begin = turn * self.at_once
        places, shared = (each[begin : begin + self.at_once] for each in self.elements)
        inside = (places >= self.edges[band]) & (places < self.edges[band + 1])
        return begin + np.flatnonzero(inside if also_shared else inside & ~shared)

    def _turns(self) -> range:
        """Return the turns in which all ranks' elements go: what is told about them would else be more than they are."""
        return range(-(-max(self.line.allgather(self.elements[0].size)) // self.at_once))

    def _exchange(self, out: list[Array], dtype: Any) -> list[Array]:
        """Send out[r] to each rank r, and return what came from each."""
        sizes = self.line.allgather([array.size for array in out])
        found = [np.empty(of[self.line.rank], dtype) for of in sizes]
        requests = [self.line.Irecv(piece, rank, self.tag) for rank, array in enumerate(found) if rank != self.line.rank for piece in pieces(array)]
        requests += [
            self.line.Isend(piece, rank, self.tag) for rank, array in enumerate(out) if rank != self.line.rank for piece in pieces(np.ascontiguousarray(array))
        ]
        with self.line.blocked("an exchange of ranges"):
            for request in requests:
                until(request.Test)
        found[self.line.rank] = out[self.line.rank]
        return found

    def to_band(self, values: Array) -> Array:
        """Return the band of what each rank has of its parts."""
        band = np.empty(self.hi - self.lo, values.dtype)
        for turn in self._turns():
            own = [self._of(each, turn, also_shared=self.line.rank == 0) for each in range(self.line.size)]
            places = self._exchange([self.elements[0][numbers] for numbers in own], np.int64)
            for where, what in zip(places, self._exchange([values[numbers] for numbers in own], values.dtype), strict=True):
                band[where - self.lo] = what
        return band

    def from_band(self, band: Array, out: Array) -> None:
        """Fill `out`, what this rank has of its parts, from all bands."""
        for turn in self._turns():
            own = [self._of(each, turn, also_shared=True) for each in range(self.line.size)]
            wanted = self._exchange([self.elements[0][numbers] for numbers in own], np.int64)
            for numbers, what in zip(own, self._exchange([band[where - self.lo] for where in wanted], out.dtype), strict=True):
                out[numbers] = what
