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
from mpidml.data.exact import ExactMean
from mpidml.data.raw import Array, Reading

MISSING = frozenset(("", "?", "NA", "NaN", "nan", "NAN"))
_SHOWN = 8


class Cell(NamedTuple):
    """Where a cell stands, and its text; `line` is 0 in files that have none."""

    file: str
    row: int
    line: int
    text: str

    def at(self) -> str:
        """Say in which row it stands."""
        return f"row {self.row}" + (f" (line {self.line})" if self.line else "")


class Column(NamedTuple):
    """What a column holds: codes (n,) of its words, -1 elsewhere (None: no word); where each word, a number and a missing cell stand first."""

    name: str
    codes: Array | None
    words: tuple[Cell, ...]
    n_words: int
    n_numbers: int
    number: Cell | None
    missing: Cell | None


class Filling(NamedTuple):
    """How a column becomes numbers: its categories (None: it is one of numbers), and the number or category that stands in for a missing cell."""

    name: str
    categories: tuple[str, ...] | None
    missing: float


class Known(NamedTuple):
    """The columns that a run learnt from: names of the features, name and place of the label (no names: a table without a header), how many features."""

    names: tuple[str, ...]
    label: str
    at: int
    n: int

    def find(self, file: str, first: Sequence[str]) -> tuple[int, bool]:
        """Return where the label's column is (-1: nowhere) in a table whose first line this is, and whether that line is a header for sure."""
        names = tuple(text.strip() for text in first)
        if len(first) not in (self.n, self.n + 1):
            raise UserError(f"{file}: has {len(first)} columns, the run learnt from {self.n} features and a label; give those columns, with the label or without")
        if len(first) == self.n:
            return -1, bool(self.names) and names == self.names
        return (names.index(self.label), True) if self.names and self.label in names else (self.at, False)


class Coding(NamedTuple):
    """How the training data are coded, so that test data can be coded alike."""

    file: str
    columns: tuple[Filling, ...]
    classes: list[str] | None
    reading: Reading
    names: tuple[str, ...] = ()
    label: str = ""
    at: int = -1

    @property
    def known(self) -> Known:
        """Return what finds the label's column in other files."""
        return Known(self.names, self.label, self.at, len(self.columns))


class Table(NamedTuple):
    """cells (n, columns) float64, NaN where no number stands; `at` is the label's column (-1: none); `names`: those of the features, and `label`
    that of the label, empty without a header."""

    file: str
    cells: Array
    columns: tuple[Column, ...]
    at: int
    names: tuple[str, ...]
    label: str = ""

    @property
    def classes(self) -> list[str] | None:
        """Return the labels that are words, sorted; None where labels are numbers. UserError where some are words and some numbers, or missing."""
        label = self.columns[self.at]
        if label.missing is not None:
            kind = "an empty label" if not label.missing.text else f"no label but '{label.missing.text}'"
            raise UserError(f"{label.missing.file}: {label.missing.at()} has {kind} in column {self.at}; give each row a label")
        if label.n_words and label.n_numbers:
            odd, kind, others = _odd(label)
            raise UserError(f"{odd.file}: label '{odd.text}' in row {odd.row} is a {kind}, others are {others}s; label all rows alike")
        return sorted(cell.text for cell in label.words) if label.n_words else None

    @classmethod
    def joined(cls, name: str, parts: Sequence[Table]) -> Table:
        """Join the parts in their order; UserError names two files whose columns differ. Names are those of the first; others may have none."""
        first = parts[0]
        if len(parts) == 1:
            return first
        for part in parts[1:]:
            if len(part.columns) != len(first.columns) or part.at != first.at:
                here, there = (f"{len(p.columns)} columns, the label in {p.at}" for p in (part, first))
                raise UserError(f"{part.file}: has {here}, {first.file} has {there}; give all files the same columns")
            check_names(part, first)
        columns = tuple(_joined(each, [len(part.cells) for part in parts]) for each in zip(*(part.columns for part in parts), strict=True))
        return cls(name, np.concatenate([part.cells for part in parts]), columns, first.at, first.names, first.label)

    def part(self, lo: int, hi: int) -> Table:
        """Return rows [lo, hi), with all that is known of the columns; no rows: the columns alone."""
        columns = tuple(c._replace(codes=None if c.codes is None else c.codes[lo:hi]) for c in self.columns)
        return self._replace(cells=self.cells[lo:hi], columns=columns)

    def coding(self, reading: Reading, usual: Callable[[int], float] | None = None) -> Coding:
        """Decide how each column is coded; UserError for columns of words and numbers, and for missing cells that are not to be imputed.

        `usual(j)` returns what stands in for a missing cell of column j, where the table has not all rows itself.
        """
        columns = tuple(self._filling(j, reading, usual or self._usual(reading)) for j in range(len(self.columns)) if j != self.at)
        if reading.categories != Reading().categories and all(column.categories is None for column in columns):
            raise UserError(f"--categories {reading.categories}: does nothing, {self.file} has no column of words; leave it out")
        return Coding(self.file, columns, self.classes, reading, self.names, self.label, self.at)

    def rows(self, coding: Coding) -> tuple[Array, Array]:
        """Return x (n, features) float64 and labels, int64 where they are words; UserError for cells and labels that the coding does not know."""
        return self.features(coding), self.answers(coding)

    def answers(self, coding: Coding) -> Array:
        """Return the labels."""
        y = self.cells[:, self.at]
        if coding.classes is not None:
            label = self.columns[self.at]
            position = {text: i for i, text in enumerate(coding.classes)}
            for cell in label.words:
                if cell.text not in position:
                    raise UserError(f"{cell.file}: label '{cell.text}' in row {cell.row} is unknown; {nearest(cell.text, coding.classes)}")
            assert label.codes is not None
            y = np.array([position[cell.text] for cell in label.words], np.int64)[label.codes]
        return y

    def features(self, coding: Coding) -> Array:
        """Return x."""
        features = [j for j in range(len(self.columns)) if j != self.at]
        if len(features) != len(coding.columns):
            raise UserError(
                f"{self.file}: train rows have {len(coding.columns)} features, test rows have {len(features)}; give both the same features"
            )
        parts = [self._numbers(j, filling, coding) for j, filling in zip(features, coding.columns, strict=True)]
        if all(part.ndim == 1 and part.base is self.cells for part in parts):  # nothing was coded
            last = len(self.columns) - 1
            return self.cells if self.at < 0 else self.cells[:, :-1] if self.at == last else np.delete(self.cells, self.at, 1)
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
        missing = sum(column.missing is not None for j, column in enumerate(self.columns) if j != self.at)
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
            odd, kind, others = _odd(column)
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


def _odd(column: Column) -> tuple[Cell, str, str]:
    """Return the first cell of the rarer kind, its kind and the other."""
    assert column.number is not None
    return (column.words[0], "word", "number") if column.n_words <= column.n_numbers else (column.number, "number", "word")


def _joined(columns: Sequence[Column], sizes: Sequence[int]) -> Column:
    """Join one column of several files: words get codes in the order of their first occurrence over all."""
    first = columns[0]
    index: dict[str, int] = {}
    words: list[Cell] = []
    for cell in (cell for column in columns for cell in column.words):
        if index.setdefault(cell.text, len(words)) == len(words):
            words.append(cell)
    codes: list[Any] = [
        np.full(n, -1, np.int32) if c.codes is None else np.array([index[cell.text] for cell in c.words] + [-1], np.int32)[c.codes]
        for c, n in zip(columns, sizes, strict=True)
    ]
    number, missing = (next((cell for cell in of if cell is not None), None) for of in ([c.number for c in columns], [c.missing for c in columns]))
    n_words, n_numbers = sum(c.n_words for c in columns), sum(c.n_numbers for c in columns)
    return Column(first.name, np.concatenate(codes) if words else None, tuple(words), n_words, n_numbers, number, missing)
