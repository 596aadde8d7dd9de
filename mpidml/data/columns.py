"""Say what a column of a table holds, which columns are labels, and how the columns of several files are one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError, nearest
from mpidml.data.raw import Array

MISSING = frozenset(("", "?", "NA", "NaN", "nan", "NAN"))


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


class Known(NamedTuple):
    """The columns that a run learnt from: names of the features, names and places of the labels (no names: a table without a header), how many features."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    at: tuple[int, ...]
    n: int

    def find(self, file: str, first: Sequence[str]) -> tuple[tuple[int, ...], bool]:
        """Return where the labels' columns are (none: nowhere) in a table whose first line this is, and whether that line is a header for sure."""
        names = tuple(text.strip() for text in first)
        if len(first) not in (self.n, self.n + len(self.at)):
            several = "a label; give those columns, with the label" if len(self.at) == 1 else f"{len(self.at)} labels; give those columns, with the labels"
            raise UserError(f"{file}: has {len(first)} columns, the run learnt from {self.n} features and {several} or without")
        if len(first) == self.n:
            return (), bool(self.names) and names == self.names
        known = bool(self.names) and set(self.labels) <= set(names)
        return (tuple(map(names.index, self.labels)), True) if known else (self.at, False)


def places(file: str, names: Sequence[str], label: str | Sequence[str | int] | None) -> tuple[int, ...]:
    """Return where the labels' columns are: the last one, that of the name `label`, or those whose names `label` lists, with commas or one by one."""
    if label is None:
        return (len(names) - 1,)
    listed = [label] if label in names else [name.strip() for name in label.split(",")] if isinstance(label, str) else list(label)
    for i, name in enumerate(listed):
        if name not in names:
            raise UserError(f"{file}: there is no column '{name}'; {nearest(str(name), names)}")
        if name in listed[:i]:
            raise UserError(f"{file}: column '{name}' is named twice as a label; name it once")
    if len(listed) == len(names):
        raise UserError(f"{file}: all of its {len(names)} columns are named as labels; leave at least one for the features")
    return tuple(names.index(str(name)) for name in listed)


def rarer(column: Column) -> tuple[Cell, str, str]:
    """Return the first cell of the rarer kind, its kind and the other."""
    assert column.number is not None
    return (column.words[0], "word", "number") if column.n_words <= column.n_numbers else (column.number, "number", "word")


def join(columns: Sequence[Column], sizes: Sequence[int]) -> Column:
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
