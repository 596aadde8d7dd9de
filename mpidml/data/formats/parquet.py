"""Read Parquet tables, row group by row group: numbers as they are, text as words, what is null as missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.columns import MISSING, Cell, Column, places
from mpidml.data.formats.base import Format, Known, Label, package
from mpidml.data.raw import Array
from mpidml.data.stored import rows_at_once
from mpidml.data.table import Table

BUFFER_NBYTES = 1 << 16


class Parquet(Format):
    """`.parquet` and `.pq`, by pyarrow; the column(s) `label`, or else the last one, hold the labels. Numbers become float64, booleans 0 and 1."""

    endings = (".parquet", ".pq")
    is_table = True

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Table:
        with _opened(path, memory_map=True) as file:
            at, n = _at(path, file, label, known), file.metadata.num_rows
            return _table(path, file.schema_arrow, at, (file.read_row_group(g, use_threads=False) for g in range(file.num_row_groups)), 0, n)

    def stream(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> ParquetFile:
        with _opened(path) as file:
            _columns(path, file.schema_arrow)  # what they hold
            return ParquetFile(path, _at(path, file, label, known))


class Piece(NamedTuple):
    """A row group: its number, its first row, and how many rows it has."""

    group: int
    row: int
    n: int


class ParquetFile(NamedTuple):
    """A table to be read row group by row group; `at`: the labels' columns."""

    path: Path
    at: tuple[int, ...]

    def pieces(self) -> list[Piece]:
        """List the row groups."""
        with _opened(self.path) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        return [Piece(g, sum(sizes[:g]), n) for g, n in enumerate(sizes)]

    def parts(self, piece: Piece) -> Iterator[Table]:
        """Read a row group, some rows at a time."""
        arrow, lo = package("pyarrow", self.path), piece.row
        with _opened(self.path, buffer_size=BUFFER_NBYTES, pre_buffer=False) as file:
            size = rows_at_once(8 * len(file.schema_arrow.names))
            for batch in file.iter_batches(size, [piece.group], use_threads=False):
                yield _table(self.path, file.schema_arrow, self.at, [arrow.Table.from_batches([batch])], lo, batch.num_rows)
                lo += batch.num_rows


def _opened(path: Path, **how: Any) -> Any:
    package("pyarrow", path)
    return package("pyarrow.parquet", path).ParquetFile(path, page_checksum_verification=True, **how)


def _at(path: Path, file: Any, label: Label, known: Known | None) -> tuple[int, ...]:
    """Return which columns hold the labels (none: no labels); UserError for a table that cannot be trained on."""
    names = list(file.schema_arrow.names)
    if len(names) < 2 and known is None:
        raise UserError(f"{path}: has {len(names)} column, at least 2 are needed (features, label); give a table of both")
    if index := next((name for name in names if re.fullmatch(r"__index_level_\d+__", name)), None):
        raise UserError(f"{path}: column {names.index(index)} ('{index}') is the index of a pandas frame, which is no data; write it by to_parquet(..., index=False)")
    at = places(str(path), names, label) if known is None else known.find(str(path), names)[0]
    if not file.metadata.num_rows:
        raise UserError(f"{path}: the file holds columns but no rows; give at least one row")
    return at


def _columns(path: Path, schema: Any) -> list[_Column]:
    arrow = package("pyarrow", path)
    return [_Column(str(path), f"{i} ('{name}')", schema.field(i).type, arrow) for i, name in enumerate(schema.names)]


def _table(path: Path, schema: Any, at: tuple[int, ...], tables: Iterable[Any], first: int, n: int) -> Table:
    """Return n rows of the file from row `first` on, which come in several tables."""
    columns, names, lo = _columns(path, schema), list(schema.names), 0
    cells = np.empty((n, len(names)))
    for table in tables:
        for j, column in enumerate(columns):
            column.take(table.column(j), first + lo, cells[lo : lo + table.num_rows, j])
        lo += table.num_rows
    features = tuple(name for i, name in enumerate(names) if i not in at)
    return Table(str(path), cells, tuple(column.found() for column in columns), at, features, tuple(names[i] for i in at))


class _Column:
    """Collect what a column holds, row group by row group."""

    def __init__(self, file: str, name: str, kind: Any, arrow: Any) -> None:
        types = arrow.types
        self.file, self.name, self.arrow = file, name, arrow
        value = kind.value_type if types.is_dictionary(kind) else kind
        self.is_text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
        if not (self.is_text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)):
            raise UserError(f"{file}: column {name} is {kind}; give numbers or text, or leave the column out")
        self.index: dict[str, int] = {}
        self.words: list[Cell] = []
        self.codes: list[Array] = []
        self.n_numbers = 0
        self.number: Cell | None = None
        self.missing: Cell | None = None

    def take(self, values: Any, first_row: int, out: Array) -> None:
        """Add the values of a row group and write their numbers to `out`, NaN for others."""
        out[:] = np.nan
        if self.is_text:
            self._take_words(values, first_row)
            return
        out[:] = values.cast(self.arrow.float64(), safe=False).to_numpy()
        missing, infinite = np.isnan(out), np.isinf(out)
        if infinite.any():
            cell = self._cell(first_row, infinite, str(out[infinite.argmax()]))
            raise UserError(f"{self.file}: {cell.at()}, column {self.name} holds '{cell.text}', not a finite number; give such numbers only")
        if missing.any():
            self.missing = self.missing or self._cell(first_row, missing, "")
        if not missing.all():
            self.number = self.number or self._cell(first_row, ~missing, str(out[(~missing).argmax()]))
        self.n_numbers += int((~missing).sum())

    def _take_words(self, values: Any, first_row: int) -> None:
        text = values.cast(self.arrow.string()) if self.arrow.types.is_dictionary(values.type) else values
        coded = text.combine_chunks().dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        of = []
        for i, raw in enumerate(coded.dictionary.to_pylist()):
            word = raw.strip()
            if word in MISSING:
                of.append(-1)
            else:
                if word not in self.index:
                    self.index[word] = len(self.words)
                    self.words.append(self._cell(first_row, codes == i, word))
                of.append(self.index[word])
        codes = np.array([*of, -1], np.int32)[codes]
        if (codes < 0).any():
            self.missing = self.missing or self._cell(first_row, codes < 0, "")
        self.codes.append(codes)

    def _cell(self, first_row: int, where: Array, text: str) -> Cell:
        return Cell(self.file, first_row + int(where.argmax()), 0, text)

    def found(self) -> Column:
        """Return the whole column."""
        codes = np.concatenate(self.codes) if self.words else None
        n_words = 0 if codes is None else int((codes >= 0).sum())
        return Column(self.name, codes, tuple(self.words), n_words, self.n_numbers, self.number, self.missing)
