"""Replace columns of codes by rows of a table that is learnt; the other columns pass through.

    columns = [1, 3]       x = | 0.5 | 2 | 7.1 | 0 |   ->   | 0.5 | 7.1 | row 2 of column 1's part | row 0 of column 3's part |
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from mpidml_kernels import LAWS, rows

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Layer, Pass, Thunk, whole

ROWS_AT_ONCE = 1 << 16


class Embedding(Layer):
    """table: (rows of all columns, units); each column has a part of its own, with rows 0 to its largest code, or `rows` in each part.

    It must be the first layer, since a code that went through another is none.
    """

    families: ClassVar[tuple[ModuleType, ...]] = (rows,)

    def __init__(self, columns: Sequence[int], units: int = 8, rows: int | None = None) -> None:
        if not isinstance(columns, list | tuple) or not columns:
            raise ValueError(f"columns = {columns!r} names no columns; give a list of their numbers from 0 up, as [0, 3]")
        self.columns = tuple(whole("a column", column, 0) for column in columns)
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns = {list(columns)} names a column twice; name each once")
        self.units, self.rows = whole("units", units, 1), None if rows is None else whole("rows", rows, 1)
        self.n_rows = [self.rows or 0] * len(self.columns)

    def categories(self) -> tuple[int, ...]:
        """Return the columns."""
        return self.columns

    def see(self, *parts: Array) -> None:
        """Give each column as many rows as its codes need; ValueError where one is no whole number from 0 up, or not below `rows`."""
        for c, column in enumerate(self.columns):
            for x in parts:
                for lo in range(0, len(x) if column < x.shape[1] else 0, ROWS_AT_ONCE):
                    self._see(c, x[lo : lo + ROWS_AT_ONCE, column], lo)

    def _see(self, c: int, codes: Array, first: int) -> None:
        most = self.rows if self.rows is not None else 1 << (24 if codes.dtype == np.float32 else 31)
        bad = (codes < 0) | (codes != np.floor(codes)) | (codes >= most)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"column {self.columns[c]} holds {codes[row]:g} in row {first + row}, which is no code from 0 to {most - 1}; correct the data, columns or rows"
            )
        if self.rows is None:
            self.n_rows[c] = max(self.n_rows[c], int(codes.max()) + 1)

    def connect(self, place: int, n_in: int, n_outputs: int | None) -> int:
        """Return the columns that pass through plus `units` for each that does not."""
        if place:
            raise ValueError("must be the first layer, since only the data hold codes; move it there, with all columns in its list")
        if max(self.columns) >= n_in:
            raise ValueError(f"column {max(self.columns)}: the data have {n_in} columns; name columns from 0 to {n_in - 1}")
        if not all(self.n_rows):
            raise ValueError("rows: is missing, and no data were seen; give a number of rows")
        self.passed = np.array([j for j in range(n_in) if j not in self.columns], np.int64)
        self.starts = np.cumsum([0, *self.n_rows[:-1]], dtype=np.int64)
        self.place, self.n_in, self.n_out = place, n_in, len(self.passed) + len(self.columns) * self.units
        self.tensors = [("table", (sum(self.n_rows), self.units))]
        return self.n_out

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Draw normal values of variance 1, the spread of the columns that pass through."""
        parameters["table"][...] = self.drawn(random, parameters["table"].shape)

    def drawn(self, random: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return the next values of the table, which is drawn row by row, in float64."""
        return random.standard_normal(shape)

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count the additions to the table's gradient."""
        return LAWS["embed_backward"].flops(m, len(self.columns) * self.units)

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the one call."""
        return [(backend.embed, (a.x, *self._where(backend), a.parameters["table"], a.out))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the one call that adds up the table's gradient; nobody wants that of the data."""
        return [Group([(backend.embed_backward, (a.d, a.x, *self._where(backend), a.gradients["table"]))], *self.parts(0, False)[0])]

    def _where(self, backend: Any) -> list[Array]:
        return [backend.here(each) for each in (self.passed, np.array(self.columns, np.int64), self.starts)]
