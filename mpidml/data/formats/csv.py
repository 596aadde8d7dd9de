"""Read a table of comma-separated cells, and say at which row, line and column it goes wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import isfinite, isnan
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.columns import MISSING, Cell, Column, places
from mpidml.data.csv_rows import BLOCK_NBYTES, Piece, Rows, Span, batches, head, line_blocks, pieces
from mpidml.data.formats.base import Format, Known, Label, opened
from mpidml.data.raw import Array
from mpidml.data.table import Table


class Csv(Format):
    """`.csv` and `.csv.gz`, UTF-8; the column(s) `label`, or else the last one, hold the labels. Blank lines are skipped.

    The first line is a header when none of its features is a number, when `label` is given, or when its label is no number and the next one is.
    """

    endings = (".csv", ".csv.gz")
    is_table = True

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Table:
        try:
            with opened(path) as stream:
                top, blocks = _top(str(path), stream, label, known)
                tables = list(_tables(top, batches(top.file, blocks, len(top.columns), top.n_lines), whole=True))
                return tables[0]
        except UnicodeDecodeError:
            raise UserError(_not_utf8(path)) from None

    def stream(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> CsvFile:
        try:
            with opened(path) as stream:
                return CsvFile(path, _top(str(path), stream, label, known)[0])
        except UnicodeDecodeError:
            raise UserError(_not_utf8(path)) from None


class Top(NamedTuple):
    """What the first lines of a table say: the columns' names, as messages call them, the lines of the header, the labels' columns, and names."""

    file: str
    columns: tuple[str, ...]
    n_lines: int
    at: tuple[int, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]


class CsvFile(NamedTuple):
    """A table to be read piece by piece, each cut at the ends of lines; a packed one is a single piece."""

    path: Path
    top: Top

    def pieces(self) -> list[Piece]:
        """Count the rows."""
        try:
            with opened(self.path) as stream:
                found = pieces(stream, self.top.n_lines)
        except UnicodeDecodeError:
            raise UserError(_not_utf8(self.path)) from None
        if self.path.name.lower().endswith(".gz"):
            return [Piece(0, -1, 1, 0, sum(piece.n for piece in found))]
        return found

    def parts(self, piece: Piece) -> Iterator[Table]:
        """Read a piece, a batch of rows at a time."""
        try:
            with opened(self.path) as stream:
                stream.seek(piece.offset)
                blocks = line_blocks(stream, BLOCK_NBYTES) if piece.nbytes < 0 else iter([stream.read(piece.nbytes)])
                first = next(blocks, b"")
                whole = chain([first.removeprefix(b"\xef\xbb\xbf") if piece.line == 1 else first], blocks)
                skipped = self.top.n_lines if piece.line == 1 else 0
                yield from _tables(self.top, batches(self.top.file, whole, len(self.top.columns), skipped, piece.line, piece.row), piece.row)
        except UnicodeDecodeError:
            raise UserError(_not_utf8(self.path)) from None


def _top(file: str, stream: IO[bytes], label: Label, known: Known | None) -> tuple[Top, Iterator[bytes]]:
    """Look at the first lines; return what they say, and all blocks of the text."""
    rows, n_lines, blocks = head(stream)
    if not rows:
        raise UserError(f"{file}: the file holds no rows; give a table of features and labels")
    first = rows[0]
    width = len(first)
    if width < 2 and known is None:
        raise UserError(f"{file}: the first line has {width} column, at least 2 are needed (features, label); separate columns by commas")
    titles = [name.strip() for name in first]
    at, is_known = (places(file, titles, label), False) if known is None else known.find(file, first)
    if label is not None and all(map(_is_number, first)) and not all(text.strip().isdecimal() for text in first):
        raise UserError(f"{file}: column '{label}' was named, but the first line holds numbers, not names; give the file a header, or drop the name")
    has_header = label is not None or is_known or not any(_is_number(text) for i, text in enumerate(first) if i not in at)
    # column names that are numbers above numeric labels, as data frames write them
    has_header = has_header or (bool(at) and len(rows) > 1 and len(rows[1]) == width and all(not _is_number(first[i]) and _is_number(rows[1][i]) for i in at))
    if has_header and "" in titles:
        raise UserError(f"{file}: column {titles.index('')} has no name in the header, as the index of a data frame; give it a name, or leave the column out")
    if has_header and len(rows) == 1:
        raise UserError(f"{file}: the file holds a header but no rows; give at least one row")
    columns = tuple(f"{i} ('{name}')" if has_header else f"{i}" for i, name in enumerate(titles))
    features = tuple(name for i, name in enumerate(titles) if i not in at) if has_header else ()
    return Top(file, columns, n_lines if has_header else 0, at, features, tuple(titles[i] for i in at) if has_header else ()), blocks


def _tables(top: Top, found: Iterable[Rows | Span], n: int = 0, whole: bool = False) -> Iterator[Table]:
    """Yield a table for each batch of rows, the first of which is row n; one for all of them if `whole`."""
    width = len(top.columns)
    columns, cells = [_Column(top.file, name, n) for name in top.columns], []
    for batch in found:
        values = np.empty((len(batch.lines), width))
        numbers = batch.numbers([j for j, column in enumerate(columns) if not column.words])
        for j, column in enumerate(columns):
            if j in numbers:
                values[:, j] = numbers[j]
                column.count(len(values), batch, j, n)
            else:
                column.take(batch.cells(j), n, batch.lines, values[:, j])
        cells.append(values)
        n += len(values)
        if not whole:
            yield Table(top.file, values, tuple(column.found(n) for column in columns), top.at, top.names, top.labels)
            columns, cells = [_Column(top.file, name, n) for name in top.columns], []
    if whole:
        yield Table(top.file, np.concatenate(cells), tuple(column.found(n) for column in columns), top.at, top.names, top.labels)


class _Column:
    """Collect what a column holds, block by block."""

    def __init__(self, file: str, name: str, first_row: int = 0) -> None:
        self.file, self.name, self.n_coded = file, name, first_row
        self.codes: list[Array] = []
        self.n_words = self.n_numbers = 0
        self.index: dict[str, int] = {}
        self.words: list[Cell] = []
        self.number: Cell | None = None
        self.missing: Cell | None = None

    def count(self, n: int, batch: Rows | Span, j: int, first_row: int) -> None:
        """Note that the n cells of a batch are numbers."""
        self.number = self.number or Cell(self.file, first_row, batch.lines[0], batch.cells(j)[0].strip())
        self.n_numbers += n

    def take(self, cells: Sequence[str], first_row: int, lines: Sequence[int], out: Array) -> None:
        """Look at the cells of a batch one by one, and write their numbers to `out`, NaN for others."""
        codes = np.full(len(cells), -1, np.int32)
        index = self.index
        for i, text in enumerate(map(str.strip, cells)):
            code = index.get(text)
            if code is None:
                code, out[i] = self._look(text, first_row + i, lines[i])
            else:
                out[i] = np.nan
            codes[i] = code
        self.n_words += int((codes >= 0).sum())
        self.codes += [np.full(first_row - self.n_coded, -1, np.int32), codes]
        self.n_coded = first_row + len(cells)

    def _look(self, text: str, row: int, line: int) -> tuple[int, float]:
        """Return the code (-1: no word) and the number (NaN: none) of a cell that is no word seen before."""
        cell = Cell(self.file, row, line, text)
        value = None if text in MISSING else _number(text)
        if text in MISSING or (value is not None and isnan(value)):
            self.missing = self.missing or cell
            return -1, np.nan
        if value is None:
            self.index[text] = code = len(self.words)
            self.words.append(cell)
            return code, np.nan
        if not isfinite(value):
            raise UserError(f"{self.file}: {cell.at()}, column {self.name} holds '{text}', not a finite number; give such numbers only")
        self.number = self.number or cell
        self.n_numbers += 1
        return -1, value

    def found(self, n: int) -> Column:
        """Return the whole column, row n being the first behind it."""
        codes = np.concatenate([*self.codes, np.full(n - self.n_coded, -1, np.int32)]) if self.words else None
        return Column(self.name, codes, tuple(self.words), self.n_words, self.n_numbers, self.number, self.missing)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_number(text: str) -> bool:
    return _number(text) is not None


def _not_utf8(path: Path) -> str:
    """Say which line is no UTF-8."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{path}: line {number} cannot be decoded as UTF-8 (byte 0x{line[error.start]:02x} after {error.start} others); save the file as UTF-8"
    return f"{path}: the file cannot be decoded as UTF-8; save it as UTF-8"
