"""Read data that do not fit in memory: every process of a crew decodes its share of the pieces, a block at a time, and leaves the rows on the disk.

    first pass     pieces of all files -> what the columns hold, counts, exact means -> how the data are coded, by the first process
    second pass    the same pieces -> coded rows -> scratch file at their place         rows that lie in a file as they are stay there

A crew has `share(function, items, *arguments)`, which gives each process a contiguous part of the items and returns what each found, in order, and
`scratch`. Functions are called as function(scratch, part of the items, *arguments).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data import sparse
from mpidml.data.arrays import Arrays
from mpidml.data.raw import Array, Reading, undecodable
from mpidml.data.sparse import SparseRows
from mpidml.data.stored import Decoded, Segment, Stored, rows_at_once
from mpidml.data.table import Coding, Table, usual


class Scratch(Protocol):
    """A file that all processes of a crew write to; `reserve`, by the first one alone, returns where so many bytes have room."""

    fd: int

    def reserve(self, nbytes: int) -> int: ...
    def write(self, rows: Array, offset: int) -> None: ...


class Crew(Protocol):
    """See above; without a scratch file rows can only stay where they are."""

    scratch: Any

    def share(self, function: Any, items: Sequence[Any], *arguments: Any) -> list[Any]: ...


class Item(NamedTuple):
    """A piece of one of the files, and the row of the whole that it begins with."""

    file: Any
    piece: Any
    row: int


def joined(source: str, parts: Sequence[Any], crew: Crew) -> Any:
    """Return the contents of all files of a source as `Contents` spells them, with rows that lie on the disk."""
    if isinstance(parts[0], Arrays):
        return Arrays.joined(source, [part._replace(x=stored(part.x, crew), test_x=stored(part.test_x, crew)) for part in parts])
    items: list[Item] = []
    for file in parts:
        first = items[-1].row + items[-1].piece.n if items else 0
        pieces = [piece for piece in _decoding(str(file.path), file.pieces) if piece.n]
        items += (Item(file, piece, row) for piece, row in zip(pieces, accumulate((p.n for p in pieces), initial=first), strict=False))
    summaries = [part for found in crew.share(_summarise, items) for part in found]
    if not summaries or isinstance(summaries[0][1], SparseRows):
        return StreamedSparse(source, parts, items, summaries, crew)
    return StreamedTable(source, items, summaries, crew)


def lies_open(part: Any) -> bool:
    """Whether the rows of a file can be read at will as they are."""
    return isinstance(part, Arrays) and isinstance(part.x, Stored) and (part.test_x is None or isinstance(part.test_x, Stored))


def stored(x: Any, crew: Crew) -> Any:
    """Return rows that can be read at will, decoded to the scratch file where they cannot yet; all of them have been looked at."""
    if x is None:
        return None
    if isinstance(x, Stored):
        step = rows_at_once(x.width * x.dtype.itemsize)
        faults = crew.share(_look, [(lo, min(lo + step, len(x))) for lo in range(0, len(x), step)], x)
        found = x
    else:
        offset = crew.scratch.reserve(len(x) * int(np.prod(x.shape[1:])) * x.dtype.itemsize)
        found = Stored([Segment("", offset, len(x), x.dtype.str)], x.shape, crew.scratch)
        if isinstance(x, Decoded):
            faults = crew.share(_decode, x.pieces, x.path, x.blocks, found)
        else:
            faults = [_decode(crew.scratch, [(0, len(x))], "", lambda lo, hi: iter([x]), found)]
    found.fault = next((fault for fault in faults if fault is not None), None)
    return found


def _look(scratch: Scratch, ranges: Sequence[tuple[int, int]], x: Stored) -> tuple[int, int] | None:
    """Find the first value that is not finite."""
    found = (_fault(x[lo:hi], lo) for lo, hi in ranges) if x.dtype.kind == "f" else iter(())
    return next((fault for fault in found if fault is not None), None)


def _decode(scratch: Scratch, ranges: Sequence[tuple[int, int]], path: str, blocks: Any, to: Stored) -> tuple[int, int] | None:
    """Write rows to the scratch file; return where the first value stands that is not finite."""
    fault = None
    for lo, hi in ranges:
        for block in _decoding(path, blocks, lo, hi):
            rows = np.ascontiguousarray(block.reshape(len(block), -1))
            fault = fault or _fault(rows, lo)
            scratch.write(rows, to.segments[0].offset + lo * rows.strides[0])
            lo += len(rows)
    return fault


def _decoding(path: str, decode: Any, *arguments: Any) -> Iterator[Any]:
    """Yield what `decode(*arguments)` does; what a damaged file raises is told as such."""
    try:
        yield from decode(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise undecodable(path, error) from None


def _fault(rows: Array, first: int) -> tuple[int, int] | None:
    if rows.dtype.kind != "f" or np.isfinite(rows).all():
        return None
    row, column = np.argwhere(~np.isfinite(rows))[0].tolist()
    return first + row, column


def _summarise(scratch: Scratch, items: Sequence[Item]) -> list[tuple[Any, Any, bool]]:
    """Return of each file what its columns hold in these pieces, without rows; of sparse rows also whether float32 has their values."""
    found: list[tuple[Any, Any, bool]] = []
    for item in items:
        for part in _decoding(str(item.file.path), item.file.parts, item.piece):
            summary: Any = _without_rows(part) if isinstance(part, SparseRows) else part.part(0, 0)
            halves = isinstance(part, SparseRows) and bool((part.values.astype(np.float32) == part.values).all())
            if found and found[-1][0] == item.file:
                summary, halves = type(part).joined(summary.file, [found[-1][1], summary]), halves and found[-1][2]
                summary = _without_rows(summary) if isinstance(summary, SparseRows) else summary
                found[-1] = item.file, summary, halves
            else:
                found.append((item.file, summary, halves))
    return found


def _without_rows(rows: SparseRows) -> SparseRows:
    """Keep the extremes, and a few different labels: enough to see whether they are signs."""
    return rows._replace(labels=np.unique(rows.labels)[:3], indptr=np.zeros(1, np.int64), indices=rows.indices[:0], values=rows.values[:0])


class StreamedTable:
    """A table whose cells nobody holds: `summary` is one without rows. What it answers has the bits that the whole table would give."""

    def __init__(self, source: str, items: Sequence[Item], summaries: Sequence[tuple[Any, Table, bool]], crew: Crew) -> None:
        self.items, self.crew = items, crew
        self.n = items[-1].row + items[-1].piece.n
        by_file: dict[Any, list[Table]] = defaultdict(list)
        for file, summary, _ in summaries:
            by_file[file].append(summary)
        self.summary = Table.joined(source, [Table.joined(found[0].file, found) for found in by_file.values()])
        self.at, self.labels = self.summary.at, self.summary.labels

    @property
    def classes(self) -> tuple[list[str] | None, ...]:
        """Return of each label's column the words."""
        return self.summary.classes

    def coding(self, reading: Reading) -> Coding:
        """Decide how each column is coded."""
        if reading.missing != "impute":
            return self.summary.coding(reading)
        seen = self.crew.share(_see, self.items, self.summary.features_at, [c.words for c in self.summary.columns], reading.train_rows, self.n)
        total: dict[int, Any] = {}
        for found in seen:
            for j, of in found.items():
                if j not in total:
                    total[j] = of
                elif isinstance(of, np.ndarray):
                    total[j] = total[j] + of
                else:
                    total[j].merge(of)
        return self.summary.coding(reading, lambda j: usual(total[j]))

    def rows(self, coding: Coding) -> tuple[Stored, Array]:
        """Write the coded rows, and return them and the labels."""
        width = self.summary.features(coding).shape[1]  # which also refuses what the coding does not know
        self.summary.answers(coding)
        scratch = self.crew.scratch
        x = Stored([Segment("", scratch.reserve(self.n * width * 8), self.n, "<f8")], (self.n, width), scratch)
        k = len(self.at)
        y = Stored([Segment("", scratch.reserve(self.n * k * 8), self.n, "<f8")], (self.n, k), scratch)
        self.crew.share(_write_table, self.items, coding, x, y)
        return x, y[:] if k > 1 else y[:][:, 0]

    def notes(self, coding: Coding) -> tuple[str, ...]:
        """Say what became of words and missing cells."""
        return self.summary.notes(coding)


def _see(scratch: Scratch, items: Sequence[Item], columns: Sequence[int], words: Sequence[Any], train_rows: Any, n: int) -> dict[int, Any]:
    """Return what the training rows hold in these columns, of words by the order of all."""
    trained = np.zeros(n, bool)
    trained[slice(None) if train_rows is None else train_rows(n)] = True
    places = {j: {text: i for i, text in enumerate(sorted(cell.text for cell in words[j]))} for j in columns}
    found: dict[int, Any] = {}
    for table, row in _tables(items):
        rows = np.flatnonzero(trained[row : row + len(table.cells)])
        for j in columns:
            of: Any = table.seen(j, rows)
            if places[j]:
                counts = np.zeros(len(places[j]), np.int64)
                if isinstance(of, np.ndarray):
                    counts[[places[j][text] for text in sorted(cell.text for cell in table.columns[j].words)]] = of
                found[j] = counts + found.get(j, 0)
            elif j in found:
                found[j].merge(of)
            else:
                found[j] = of
    return found


def _write_table(scratch: Scratch, items: Sequence[Item], coding: Coding, x: Stored, y: Stored) -> None:
    step = rows_at_once(8 * x.width)
    for table, row in _tables(items):
        for lo in range(0, len(table.cells), step):
            part = table.part(lo, lo + step)
            _write(scratch, row + lo, x, part.features(coding))
            _write(scratch, row + lo, y, part.answers(coding).astype(np.float64).reshape(-1, y.width))


def _write(scratch: Scratch, row: int, to: Stored, rows: Array) -> None:
    segment = to.segments[0]
    scratch.write(np.ascontiguousarray(rows, segment.dtype), segment.offset + row * to.width * np.dtype(segment.dtype).itemsize)


def _tables(items: Sequence[Item]) -> Iterator[tuple[Any, int]]:
    """Yield the portions of the pieces, each with the row of the whole that it begins with."""
    for item in items:
        row = item.row
        for part in _decoding(str(item.file.path), item.file.parts, item.piece):
            yield part, row
            row += len(part.labels) if isinstance(part, SparseRows) else len(part.cells)


class StreamedSparse:
    """Sparse rows that nobody holds; on the disk they are dense."""

    classes = (None,)

    def __init__(self, source: str, files: Sequence[Any], items: Sequence[Item], summaries: Sequence[tuple[Any, SparseRows, bool]], crew: Crew) -> None:
        for file in files:
            found = [summary for of, summary, _ in summaries if of == file]
            if not found:
                raise UserError(f"{file.path}: {sparse.NO_ROWS}")
            SparseRows.joined(found[0].file, found).refuse_empty()
        self.items, self.crew = items, crew
        self.n = items[-1].row + items[-1].piece.n
        self.summary = SparseRows.joined(source, [summary for _, summary, _ in summaries])
        self.dtype = "<f4" if all(halves for *_, halves in summaries) else "<f8"

    def coding(self, reading: Reading) -> sparse.Coding:
        """Decide what the indices and labels mean."""
        return self.summary.coding(reading)

    def rows(self, coding: sparse.Coding) -> tuple[Stored, Array]:
        """Write the rows, and return them and the labels."""
        self.summary.refuse_unknown(coding)
        scratch, size = self.crew.scratch, np.dtype(self.dtype).itemsize
        x = Stored([Segment("", scratch.reserve(self.n * coding.n_features * size), self.n, self.dtype)], (self.n, coding.n_features), scratch)
        y = Stored([Segment("", scratch.reserve(self.n * 8), self.n, "<f8")], (self.n, 1), scratch)
        self.crew.share(_write_sparse, self.items, coding, x, y)
        return x, y[:][:, 0]

    def notes(self, coding: sparse.Coding) -> tuple[str, ...]:
        """Say what was decided."""
        return self.summary.notes(coding)


def _write_sparse(scratch: Scratch, items: Sequence[Item], coding: sparse.Coding, x: Stored, y: Stored) -> None:
    step = rows_at_once(x.dtype.itemsize * x.width)
    for part, row in _tables(items):
        rows, labels = part.rows(coding)
        _write(scratch, row, y, labels[:, None])
        for lo in range(0, len(labels), step):
            _write(scratch, row + lo, x, rows[lo : lo + step].toarray())
