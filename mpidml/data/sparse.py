"""Hold rows that come as pairs of index and value, and decide whether indices begin at 0 or at 1.

    0 in any file of the training data: 0-based; else 1-based, and then a 0 in the test data is an error

A feature that no training row has cannot be tested on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.raw import Array, Reading

NO_ROWS = "the file holds no rows; give lines of a label and index:value pairs"


class Line(NamedTuple):
    """A line of a file (from 1), and an index that stands there."""

    file: str
    line: int
    feature: int


class Coding(NamedTuple):
    """The first index, the number of features, and whether labels -1, +1 stand for classes 0, 1; `plus`: the file writes them with a plus."""

    base: int
    n_features: int
    signs: bool
    file: str
    plus: bool = False

    @property
    def classes(self) -> list[str] | None:
        """The classes' names as the file writes them, None where they are their numbers."""
        return ["-1", "+1" if self.plus else "1"] if self.signs else None


class SparseRows(NamedTuple):
    """Rows as in compressed sparse rows, with the indices of the file; `lowest` and `highest`: where such an index stands first.

    `plus`: a label begins with a plus sign.
    """

    file: str
    labels: Array
    indptr: Array
    indices: Array
    values: Array
    lowest: Line
    highest: Line
    plus: bool = False

    @property
    def classes(self) -> tuple[None, ...]:
        """Labels of this kind are numbers."""
        return (None,)

    @classmethod
    def joined(cls, name: str, parts: Sequence[SparseRows]) -> SparseRows:
        """Join the parts in their order."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(part.indptr[-1] for part in parts)])
        indptr = np.concatenate([parts[0].indptr[:1], *(part.indptr[1:] + start for part, start in zip(parts, starts[:-1], strict=True))])
        labels, indices, values = (np.concatenate([part[i] for part in parts]) for i in (1, 3, 4))
        lowest, highest = min((part.lowest for part in parts), key=_feature), max((part.highest for part in parts), key=_feature)
        return cls(name, labels, indptr, indices, values, lowest, highest, any(part.plus for part in parts))

    def refuse_empty(self) -> None:
        """Refuse a file without rows, or without a pair."""
        if not len(self.labels):
            raise UserError(f"{self.file}: {NO_ROWS}")
        if self.highest.feature < 0:
            raise UserError(f"{self.file}: no row holds an index:value pair; give at least one feature")

    def coding(self, reading: Reading) -> Coding:
        """Decide what the indices and labels mean."""
        base = 0 if self.lowest.feature == 0 else 1
        signs = reading.task != "regress" and set(np.unique(self.labels).tolist()) == {-1.0, 1.0}
        return Coding(base, self.highest.feature + 1 - base, signs, self.file, self.plus)

    def rows(self, coding: Coding) -> tuple[Any, Array]:
        """Return CSR rows and labels; UserError where an index is none of the training data's."""
        from scipy.sparse import csr_matrix

        self.refuse_unknown(coding)
        x = csr_matrix((self.values, self.indices - coding.base, self.indptr), shape=(len(self.labels), coding.n_features))
        return x, (self.labels + 1) / 2 if coding.signs else self.labels

    def refuse_unknown(self, coding: Coding) -> None:
        """Refuse an index that is none of the training data's."""
        file, line, index = self.lowest
        if index < coding.base:
            raise UserError(f"{file}: line {line} has index 0, those of {coding.file} begin at 1; count from 1 in both, or from 0 in both")
        file, line, index = self.highest
        if index >= coding.n_features + coding.base:
            largest = coding.n_features - 1 + coding.base
            raise UserError(
                f"{file}: line {line} has index {index}, the largest in {coding.file} is {largest}; leave such features out, or name {index}:0 in a training row"
            )

    def notes(self, coding: Coding) -> tuple[str, ...]:
        """Say what was decided."""
        return (f"indices begin at {coding.base}" + (", labels -1 and +1 are classes 0 and 1" if coding.signs else ""),)


def _feature(line: Line) -> int:
    return line.feature
