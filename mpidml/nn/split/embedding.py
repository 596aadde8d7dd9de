"""Cut an embedding's table by rows: each rank gives the rows that it holds, zeros for those of others, and a sum puts them together.

    x | 0.5 | 2 | 7.1 |  ->  | row 2, or 0 |, summed  ->  out | 0.5 | 7.1 | row 2 |        what passes through every rank has: it is no part of the sum
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Pass, Thunk
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.split.draws import draw_part
from mpidml.nn.split.line import Line, own, summed
from mpidml.nn.split.part import Part

NONE = np.zeros(0, np.int64)
"""No columns."""


class Ranges(Part):
    """table: (own rows of those of all columns, units); x and out are whole.

    The sum has one term that is not 0, so the values are those of the whole table, to the bit (Shoeybi et al., Megatron-LM, 2019, section 3).
    """

    def __init__(self, whole: Embedding, line: Line) -> None:
        super().__init__(whole, line)
        self.shape = sum(whole.n_rows), whole.units
        self.n_found, self.n_rows = len(whole.columns) * whole.units, whole.n_rows
        rows = own(line, self.shape[0])
        self.first = rows.start
        self.hold(table=(rows, slice(0, whole.units)))

    def categories(self) -> tuple[int, ...]:
        """Return the columns of the whole layer."""
        columns: tuple[int, ...] = self.whole.categories()
        return columns

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw the own rows of the whole table."""
        whole: Embedding = self.whole
        draw_part(lambda shape: whole.drawn(random, shape), self.shape, self.index["table"], parameters["table"])

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count this rank's part of the additions to the gradient, as if all rows were read as often."""
        whole: Embedding = self.whole
        return whole.flops(m, wants_dx) * self.tensors[0][1][0] // self.shape[0]

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return a buffer for what is found, where columns pass through beside it: a sum takes what lies in one piece."""
        return (np.zeros((m, self.n_found), dtype),) if len(self.whole.passed) else ()

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls that look up the rows at hand, sum them, and lay them beside what passes through."""
        _, columns, starts, first = self._where(backend)
        found, n = a.kept[0] if a.kept else a.out, len(self.whole.passed)
        calls = [(backend.embed_part, (a.x, backend.here(NONE), columns, starts, first, a.parameters["table"], found)), summed(self.line, found)]
        if not n:
            return calls
        at = 0
        for run in np.split(self.whole.passed, np.flatnonzero(np.diff(self.whole.passed) != 1) + 1):  # of neighbours: taking single columns into a part of a row needs room
            calls.append((backend.copy, (a.out[:, at : at + len(run)], a.x[:, run[0] : run[-1] + 1])))
            at += len(run)
        return [*calls, (backend.copy, (a.out[:, n:], found))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the call that adds up the gradient of the own rows; d is whole, so nothing is summed."""
        return [Group([(backend.embed_part_backward, (a.d, a.x, *self._where(backend), a.gradients["table"]))], *next(iter(self.parts(0, False)), (0, 0)))]

    def forward_sums(self, m: int) -> list[int]:
        """Return the length of what is found."""
        return [m * self.n_found]

    def _where(self, backend: Any) -> tuple[Any, ...]:
        whole: Embedding = self.whole
        return *(backend.here(each) for each in (whole.passed, np.array(whole.columns, np.int64), whole.starts)), self.first
