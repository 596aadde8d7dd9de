"""Read a table of comma-separated numbers and one column of labels, and say at which row and column it goes wrong."""

from __future__ import annotations

import csv
import gzip
from array import array
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from mpidml.core.errors import UserError, nearest
from mpidml.data.raw import integer_labels

Array = np.ndarray[Any, Any]


class CsvTable(NamedTuple):
    """Hold the features x (n, features) float64, the labels as they stand in the file, and the features' names where it has a header."""

    path: str
    x: Array
    labels: list[str]
    names: list[str]


def read_csv(path: Path, label: str | None = None) -> CsvTable:
    """Read a table from `.csv` or `.csv.gz`; the column `label`, or else the last one, holds the labels.

    The first line is a header when none of its features is a number, when `label` is given, or when its label alone is no number.
    Blank lines are skipped. UserError for ragged rows and cells that are not numbers (row, line and column named).
    """
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        return _parse(str(path), file, label)


def code_labels(labels: Sequence[str], classes: Sequence[str] | None, where: str) -> Array:
    """Return labels as int64: numbers as they are, words as their position in `classes` (sorted)."""
    if classes is None:
        return integer_labels(np.array([float(text) for text in labels]), where)
    position = {text: i for i, text in enumerate(classes)}
    for row, text in enumerate(labels):
        if text not in position:
            raise UserError(f"{where}: label '{text}' in row {row} is unknown; {nearest(text, classes)}")
    return np.array([position[text] for text in labels], dtype=np.int64)


def classes_of(labels: Sequence[str]) -> list[str] | None:
    """Return the classes of labels that are words, in sorted order; None when all labels are numbers."""
    distinct = sorted(set(labels))
    return None if all(_is_number(text) for text in distinct) else distinct


def _parse(path: str, file: TextIO, label: str | None) -> CsvTable:
    reader = csv.reader(file)
    first = next((row for row in reader if row), None)
    if first is None:
        raise UserError(f"{path}: the file holds no rows; give a table of features and labels")
    width = len(first)
    if width < 2:
        raise UserError(f"{path}: the first line has {width} column, at least 2 are needed (features, label); separate columns by commas")
    at = width - 1 if label is None else _position(path, first, label)
    columns = [i for i in range(width) if i != at]
    has_header = label is not None or not any(_is_number(first[i]) for i in columns)
    if label is not None and all(map(_is_number, first)) and not all(text.strip().isdecimal() for text in first):
        raise UserError(f"{path}: column '{label}' was named, but the first line holds numbers, not names; give the file a header, or drop the name")
    values, labels = array("d"), list[str]()

    def take(row: list[str], line: int) -> None:
        n = len(labels)
        if len(row) != width:
            raise UserError(f"{path}: row {n} (line {line}) has {len(row)} cells, the first line has {width}; give all rows the same number")
        text = row.pop(at).strip()
        if not text:
            raise UserError(f"{path}: row {n} (line {line}) has an empty label in column {at}; give each row a label")
        try:
            numbers = list(map(float, row))
            if not all(map(isfinite, numbers)):
                raise ValueError
            values.extend(numbers)
        except ValueError:
            bad, cell = next((columns[i], cell) for i, cell in enumerate(row) if not (_is_number(cell) and isfinite(float(cell))))
            name = f"{bad} ('{first[bad]}')" if has_header else f"{bad}"
            raise UserError(f"{path}: row {n} (line {line}), column {name} holds '{cell}', not a finite number; give such numbers only") from None
        labels.append(text)

    if not has_header:
        take(list(first), reader.line_num)
    for row in reader:
        if row:
            take(row, reader.line_num)
    x = np.frombuffer(values, dtype=np.float64).reshape(len(labels), width - 1)
    if len(labels) > 1 and not has_header and not _is_number(labels[0]) and classes_of(labels[1:]) is None:
        x, labels = x[1:], labels[1:]  # column names that are numbers above numeric labels, as data frames write them
    if not labels:
        raise UserError(f"{path}: the file holds a header but no rows; give at least one row")
    is_word = [not _is_number(text) for text in labels]
    if 0 < sum(is_word) < len(labels):
        odd = is_word.index(2 * sum(is_word) <= len(labels))  # the first of the kind that is rarer
        kind, others = ("word", "number") if is_word[odd] else ("number", "word")
        raise UserError(f"{path}: label '{labels[odd]}' in row {odd} is a {kind}, others are {others}s; label all rows alike")
    return CsvTable(path, x, labels, [first[i].strip() for i in columns] if has_header else [])


def _position(path: str, header: list[str], label: str) -> int:
    names = [name.strip() for name in header]
    if label not in names:
        raise UserError(f"{path}: there is no column '{label}'; {nearest(label, names)}")
    return names.index(label)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
