"""Hold a table of mixed columns, and turn it into rows of numbers: words become categories, missing cells are refused or filled in.

    column of the file     | age | work       |          | age | work=clerk | work=farmer |
    training rows          |  25 | clerk      |   ->     |  25 |      1     |      0      |
                           |   ? | farmer     |          |  25 |      0     |      1      |    (--missing impute: the mean)

Categories are those of the whole training file, in sorted order. What is imputed is fitted to the rows that are trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError, nearest
from mpidml.data.columns import Column, Known, join, rarer
from mpidml.data.exact import ExactMean
from mpidml.data.raw import Array, Reading

_SHOWN = 8


class Filling(NamedTuple):
    """How a column becomes numbers: its categories (None: it is one of numbers), and the number or category that stands in for a missing cell."""

    name: str
    categories: tuple[str, ...] | None
    missing: float


class Coding(NamedTuple):
    """How the training data are coded, so that test data can be coded alike; `classes` of each label that is a word."""

    file: str
    columns: tuple[Filling, ...]
    classes: tuple[list[str] | None, ...]
    reading: Reading
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    at: tuple[int, ...] = ()

    @property
    def known(self) -> Known:
        """Return what finds the labels' columns in other files."""
        return Known(self.names, self.labels, self.at, len(self.columns))


class Table(NamedTuple):
    """cells (n, columns) float64, NaN where no number stands; `at` are the labels' columns (none: no labels); `names`: those of the features, and
    `labels` those of the labels, empty without a header."""

    file: str
    cells: Array
    columns: tuple[Column, ...]
    at: tuple[int, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[list[str] | None, ...]:
        """Return of each label's column the words, sorted; None where labels are numbers. UserError where some are words and some numbers, or missing."""
        return tuple(self._classes(j) for j in self.at)

    def _classes(self, j: int) -> list[str] | None:
        label = self.columns[j]
        if label.missing is not None:
            kind = "an empty label" if not label.missing.text else f"no label but '{label.missing.text}'"
            remedy = "give each row a label" if len(self.at) == 1 else "give each row all its labels, or leave it out"
            raise UserError(f"{label.missing.file}: {label.missing.at()} has {kind} in column {label.name if len(self.at) > 1 else j}; {remedy}")
        if label.n_words and label.n_numbers:
            odd, kind, others = rarer(label)
            raise UserError(f"{odd.file}: label '{odd.text}' in {odd.at()} is a {kind}, others are {others}s; label all rows alike")
        return sorted(cell.text for cell in label.words) if label.n_words else None

    @property
    def features_at(self) -> list[int]:
        """Return the places of the other columns."""
        return [j for j in range(len(self.columns)) if j not in self.at]

    @classmethod
    def joined(cls, name: str, parts: Sequence[Table]) -> Table:
        """Join the parts in their order; UserError names two files whose columns differ. Names are those of the first; others may have none."""
        first = parts[0]
        if len(parts) == 1:
            return first
        for part in parts[1:]:
            if len(part.columns) != len(first.columns) or part.at != first.at:
                here, there = (f"{len(p.columns)} columns, the label in {', '.join(map(str, p.at))}" for p in (part, first))
                raise UserError(f"{part.file}: has {here}, {first.file} has {there}; give all files the same columns")
            check_names(part, first)
        columns = tuple(join(each, [len(part.cells) for part in parts]) for each in zip(*(part.columns for part in parts), strict=True))
        return cls(name, np.concatenate([part.cells for part in parts]), columns, first.at, first.names, first.labels)

    def part(self, lo: int, hi: int) -> Table:
        """Return rows [lo, hi), with all that is known of the columns; no rows: the columns alone."""
        columns = tuple(c._replace(codes=None if c.codes is None else c.codes[lo:hi]) for c in self.columns)
        return self._replace(cells=self.cells[lo:hi], columns=columns)

    def coding(self, reading: Reading, usual: Callable[[int], float] | None = None) -> Coding:
        """Decide how each column is coded; UserError for columns of words and numbers, and for missing cells that are not to be imputed.

        `usual(j)` returns what stands in for a missing cell of column j, where the table has not all rows itself.
        """
        columns = tuple(self._filling(j, reading, usual or self._usual(reading)) for j in self.features_at)
        if reading.categories != Reading().categories and all(column.categories is None for column in columns):
            raise UserError(f"--categories {reading.categories}: does nothing, {self.file} has no column of words; leave it out")
        return Coding(self.file, columns, self.classes, reading, self.names, self.labels, self.at)

    def rows(self, coding: Coding) -> tuple[Array, Array]:
        """Return x (n, features) float64 and labels, int64 where they are words; UserError for cells and labels that the coding does not know."""
        return self.features(coding), self.answers(coding)

    def answers(self, coding: Coding) -> Array:
        """Return the labels (n,), of several columns (n, k)."""
        found = [self._answers(j, classes) for j, classes in zip(self.at, coding.classes, strict=True)]
        return found[0] if len(found) == 1 else np.stack(found, axis=1)

    def _answers(self, j: int, classes: list[str] | None) -> Array:
        y = self.cells[:, j]
        if classes is not None:
            label = self.columns[j]
            position = {text: i for i, text in enumerate(classes)}
            for cell in label.words:
                if cell.text not in position:
                    raise UserError(f"{cell.file}: label '{cell.text}' in {cell.at()} is unknown; {nearest(cell.text, classes)}; correct it")
            assert label.codes is not None
            y = np.array([position[cell.text] for cell in label.words], np.int64)[label.codes]
        return y

    def features(self, coding: Coding) -> Array:
        """Return x."""
        features = self.features_at
        if len(features) != len(coding.columns):
            raise UserError(
                f"{self.file}: train rows have {len(coding.columns)} features, test rows have {len(features)}; give both the same features"
            )
        parts = [self._numbers(j, filling, coding) for j, filling in zip(features, coding.columns, strict=True)]
        if all(part.ndim == 1 and part.base is self.cells for part in parts):  # nothing was coded
            n = len(features)
            return self.cells[:, :n] if features == list(range(n)) else np.delete(self.cells, self.at, 1)
        x = np.empty((len(self.cells), sum(1 if part.ndim == 1 else part.shape[1] for part in parts)))
        at = 0
        for part in parts:
            width = 1 if part.ndim == 1 else part.shape[1]
            x[:, at : at + width] = part.reshape(len(x), width)
            at += width
        return x

    def notes(self, coding: Coding) -> tuple[str, ...]:
        """Say what became of words and missing cells."""
        words = [column for column in coding.columns if column.categories is not None]
        missing = sum(self.columns[j].missing is not None for j in self.features_at)
        into = "one feature each" if coding.reading.categories == "codes" else f"{sum(len(c.categories or ()) for c in words)} features"
        said = [f"{len(words)} column(s) of words became {into}"] if words else []
        return (*said, *([f"{missing} column(s) had missing values, which were imputed"] if missing else []))

    def seen(self, j: int, rows: Any) -> ExactMean | Array:
        """Return what stands in column j of some rows: the mean of the numbers, or of words how often each occurs, in sorted order."""
        column = self.columns[j]
        if column.codes is not None:
            order = np.argsort(np.argsort([cell.text for cell in column.words]))
            codes = column.codes[rows]
            return np.bincount(order[codes[codes >= 0]], minlength=len(order))
        mean, values = ExactMean(), self.cells[rows, j]
        mean.add(values[~np.isnan(values)])
        return mean

    def _usual(self, reading: Reading) -> Callable[[int], float]:
        """Return what finds the mean, or the commonest word, of a column's training rows."""
        if reading.missing != "impute":
            return lambda j: 0.0
        rows = slice(None) if reading.train_rows is None else reading.train_rows(len(self.cells))
        return lambda j: usual(self.seen(j, rows))

    def _filling(self, j: int, reading: Reading, usual: Callable[[int], float]) -> Filling:
        """Decide how column j is coded."""
        column = self.columns[j]
        if column.n_words and column.n_numbers:
            odd, kind, others = rarer(column)
            what = f"not a finite number; give such numbers only, or words only ({others}s stand in {'most' if odd is not column.number else 'other'} rows)"
            if kind == "number":
                what = "a number among words; give words only, as 'c3', or numbers only"
            raise UserError(f"{odd.file}: {odd.at()}, column {column.name} holds '{odd.text}', {what}")
        self._refuse_missing(column, reading)
        if not column.n_words and not column.n_numbers:
            raise UserError(f"{self.file}: column {column.name} holds no value at all; leave the column out")
        categories = tuple(sorted(cell.text for cell in column.words)) if column.codes is not None else None
        return Filling(column.name, categories, usual(j))  # also where no cell is missing: in test rows one may be

    def _numbers(self, j: int, filling: Filling, coding: Coding) -> Array:
        """Return column j as numbers, (n,) or one-hot (n, categories); a view of the cells where nothing is to be done."""
        column, reading = self.columns[j], coding.reading
        self._refuse_missing(column, reading)
        if filling.categories is None:
            if column.words:
                cell = column.words[0]
                raise UserError(
                    f"{cell.file}: {cell.at()}, column {column.name} holds '{cell.text}', not a finite number, as in {coding.file}; give numbers only"
                )
            values = self.cells[:, j]
            return values if column.missing is None else np.where(np.isnan(values), filling.missing, values)
        position = {text: i for i, text in enumerate(filling.categories)}
        unseen = [cell for cell in ([column.number] if column.number else []) + list(column.words) if cell.text not in position]
        if unseen and reading.unseen == "refuse":
            cell = unseen[0]
            remedy = ", or --unseen ignore" if reading.categories == "onehot" else ""  # a code there is none
            known = nearest(cell.text, filling.categories) if len(position) <= _SHOWN else f"it has {len(position)} others"
            raise UserError(
                f"{cell.file}: {cell.at()}, column {column.name} holds '{cell.text}', which {coding.file} never has; {known}; correct it{remedy}"
            )
        # One place more, for cells that are no category: the last row of `of` stays zero.
        codes = np.full(len(self.cells), -1) if column.codes is None else column.codes
        of = np.array([position.get(cell.text, -1) for cell in column.words] + [-1], np.int64)[codes]
        if column.missing is not None:
            of = np.where((codes < 0) & np.isnan(self.cells[:, j]), int(filling.missing), of)
        if reading.categories == "codes":
            return of.astype(np.float64)
        return np.vstack([np.eye(len(position)), np.zeros(len(position))])[of]

    def _refuse_missing(self, column: Column, reading: Reading) -> None:
        if column.missing is not None and reading.missing == "refuse":
            cell = column.missing
            raise UserError(
                f"{cell.file}: {cell.at()}, column {column.name} holds '{cell.text}', not a finite number or word; give such numbers only, or --missing impute"
            )


def usual(seen: ExactMean | Array) -> float:
    """Return the mean, or the commonest word's place."""
    return seen.mean() if isinstance(seen, ExactMean) else float(seen.argmax())


def check_names(table: Table, first: Table | Coding) -> None:
    """Refuse columns that are not called as in `first`, where both have names."""
    if table.names and first.names and table.names != first.names:
        i = next((i for i, (a, b) in enumerate(zip(table.names, first.names, strict=False)) if a != b), min(len(table.names), len(first.names)))
        here, there = (repr(names[i]) if i < len(names) else "nothing" for names in (table.names, first.names))
        raise UserError(f"{table.file}: feature {i} is {here}, in {first.file} it is {there}; give both the same columns in the same order")
