"""Cut an embedding's table by rows where the rows of a batch are spread: codes are gathered, and each rank gives what it has to the rank that asked.

    own codes  ->  all codes  ->  the rows of the table at hand, else 0  ->  own rows of the sum        gradient of own rows  ->  of all rows  ->  own part of the table's

So neither the table is on every rank, nor is its gradient summed over ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Pass, Thunk
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.split.draws import draw_part
from mpidml.nn.split.embedding import NONE
from mpidml.nn.split.line import own
from mpidml.nn.split.spread import Spread, SpreadPart, Whole


class SpreadEmbedding(SpreadPart):
    """table: (own rows of those of all columns, units); x and out are the own rows. The sum has one term that is not 0: the values are those of the table, to the bit."""

    whole: Embedding

    def __init__(self, whole: Embedding, spread: Spread) -> None:
        super().__init__(whole, spread.line)
        n = len(whole.columns)
        self.shape = sum(whole.n_rows), whole.units
        self.columns, self.every = np.array(whole.columns, np.int64), np.arange(n, dtype=np.int64)
        self.codes, self.found = Whole(spread, n), Whole(spread, n * whole.units)
        rows = own(spread.line, self.shape[0])
        self.first = rows.start
        self.hold(table=(rows, slice(0, whole.units)))

    def categories(self) -> tuple[int, ...]:
        """Return the columns of the whole layer."""
        return self.whole.categories()

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw the own rows of the whole table."""
        draw_part(lambda shape: self.whole.drawn(random, shape), self.shape, self.index["table"], parameters["table"])

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count as the whole: a part of the additions, of all rows."""
        return self.whole.flops(m, wants_dx)

    def moved(self, wants_dx: bool) -> tuple[list[int], list[int]]:
        """Return codes brought and what is found given, and its gradient brought."""
        return [self.codes.sent()[0], self.found.sent()[1]], [self.found.sent()[0]]

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return buffers of all rows: for codes, and for what is found and the gradient of it."""
        return tuple(np.zeros(side.room(m), dtype) for side in (self.codes, self.found))

    def lent(self, kept: tuple[Array, ...], m: int) -> tuple[Array, ...]:
        """Return the buffers."""
        return kept

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls that gather codes, look up those at hand, and give them; the columns that pass through are the own rows'."""
        codes, found = a.kept
        n_passed = len(self.whole.passed)
        look_up = (backend.embed_part, (self.codes.all(codes), *self._where(backend), a.parameters["table"], self.found.all(found)))
        return [
            (backend.take_columns, (a.x, backend.here(self.columns), self.codes.own(codes))),
            *self.codes.gather(codes),
            look_up,
            (backend.take_columns, (a.x, backend.here(self.whole.passed), a.out[:, :n_passed])),
            *self.found.give(backend, found, a.out[:, n_passed:]),
        ]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the calls that bring the gradient and add up that of the own rows of the table; nobody wants that of the data."""
        codes, found = a.kept
        assert a.d is not None
        bring = self.found.bring(backend, a.d[:, len(self.whole.passed) :], found)
        where = (self.found.all(found), self.codes.all(codes), *self._where(backend))
        return [Group([*bring, (backend.embed_part_backward, (*where, a.gradients["table"]))], 0, a.gradients["table"].size)]

    def _where(self, backend: Any) -> tuple[Any, ...]:
        return *(backend.here(each) for each in (NONE, self.every, self.whole.starts)), self.first
