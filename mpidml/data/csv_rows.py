"""Cut CSV text into batches of rows, each with its line.

Without a quote, commas and line ends alone part the cells of a block: they are counted, and no cell is touched before it is asked for. From the
first quote on, and in a block of uneven rows, the rows are cut one by one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import IO, Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.decimals import parse
from mpidml.data.raw import Array

BLOCK_NBYTES = 1 << 18
ROWS_AT_ONCE = 4096
_COMMA, _END = b",\n"


class Rows:
    """A batch of rows that were cut one by one; `lines[i]` is the line of row i."""

    def __init__(self, lines: Sequence[int], rows: Sequence[Sequence[str]]) -> None:
        self.lines, self.columns = lines, tuple(zip(*rows, strict=True))

    def cells(self, j: int) -> Sequence[str]:
        """Return the cells of column j."""
        return self.columns[j]

    def numbers(self, columns: Sequence[int]) -> dict[int, Array]:
        """Return those of the columns that hold finite numbers only."""
        found: dict[int, Array] = {}
        for j in columns:
            try:
                found[j] = np.fromiter(map(float, self.columns[j]), np.float64, len(self.lines))
            except ValueError:
                pass
        return {j: values for j, values in found.items() if np.isfinite(values).all()}


class Span:
    """A batch of rows that is a block of text: the cell (i, j) is text[starts[i, j]:ends[i, j]]."""

    def __init__(self, lines: Sequence[int], text: bytes, ends: Array) -> None:
        self.lines, self.text, self.ends = lines, text, ends
        self.starts = np.concatenate([[0], ends.ravel()[:-1] + 1]).reshape(ends.shape)

    def cells(self, j: int) -> list[str]:
        """Return the cells of column j."""
        return [self.text[lo:hi].decode() for lo, hi in zip(self.starts[:, j].tolist(), self.ends[:, j].tolist(), strict=True)]

    def numbers(self, columns: Sequence[int]) -> dict[int, Array]:
        """Return those of the columns that hold finite numbers only; most others show it in their first cell."""
        kept = np.array(columns, np.int64)
        for n in (1, len(self.lines)):
            values, _ = parse(self.text, self.starts[:n, kept].ravel(), self.ends[:n, kept].ravel())
            values = values.reshape(n, len(kept))
            good = np.isfinite(values).all(axis=0)  # what is no number is NaN
            kept, values = kept[good], values if good.all() else values[:, good]
        return dict(zip(kept.tolist(), values.T, strict=True))


def head(stream: IO[bytes]) -> tuple[list[list[str]], int, Iterator[bytes]]:
    """Return the first two rows (fewer where there are no more), the lines that the first one takes, and all blocks of the text."""
    blocks = line_blocks(stream, BLOCK_NBYTES)
    first = next(blocks, b"").removeprefix(b"\xef\xbb\xbf")
    while True:
        reader = csv.reader(io.StringIO(first.decode(), newline=""))
        rows = [(reader.line_num, row) for row in islice((row for row in reader if row), 2)]
        # A quote may still be open where the block ends.
        more = next(blocks, None) if len(rows) < 2 or (b'"' in first and first.count(b'"') % 2) else None
        if more is None:
            break
        first += more
    return [row for _, row in rows], rows[0][0] if rows else 0, chain([first], blocks)


class Piece(NamedTuple):
    """What can be read by itself of a file of lines: `nbytes` from byte `offset` on (-1: to the end), where row `row` stands in line `line`; n rows."""

    offset: int
    nbytes: int
    line: int
    row: int
    n: int


def pieces(stream: IO[bytes], skipped: int) -> list[Piece]:
    """Cut a table into pieces of whole lines, without a look at its cells; a quote may hold a line's end, and from there on one piece is the rest.

    `skipped`: lines of the header.
    """
    found: list[Piece] = []
    offset, line, row = 0, 1, 0
    blocks = line_blocks(stream, BLOCK_NBYTES)
    for block in blocks:
        if b'"' in block:
            text = (io.StringIO(each.decode(), newline="") for each in chain([block], blocks))
            reader = csv.reader(chain.from_iterable(text))
            n = sum(1 for cells in reader if cells and reader.line_num > (skipped if line == 1 else 0))
            return [*found, Piece(offset, -1, line, row, n)]
        n = _count(block) - (skipped > 0 and line == 1)
        found.append(Piece(offset, len(block), line, row, n))
        offset, line, row = offset + len(block), line + block.count(b"\n"), row + n
    return found


def _count(block: bytes) -> int:
    """Count the lines that are not empty."""
    text = block.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n") if b"\r" in block else block.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in text:
        return sum(1 for cells in csv.reader(io.StringIO(text.decode(), newline="")) if cells)
    ends = np.flatnonzero(np.frombuffer(text if text.endswith(b"\n") else text + b"\n", np.uint8) == _END)
    return int((np.diff(ends, prepend=-1) > 1).sum())


def batches(file: str, blocks: Iterator[bytes], width: int, skipped: int, line: int = 1, n: int = 0) -> Iterator[Rows | Span]:
    """Yield the rows below the first `skipped` lines; UserError for one that has not `width` cells. `line`, `n`: line and row where the blocks begin."""
    for block in blocks:
        if b'"' in block:
            rest = (io.StringIO(each.decode(), newline="") for each in chain([block], blocks))
            yield from _cut(file, chain.from_iterable(rest), line, width, n, skipped)
            return
        text = block.replace(b"\r\n", b"\n") if b"\r" in block else block
        text = text if text.endswith(b"\n") else text + b"\n"
        n_lines = text.count(b"\n")
        found: Iterable[Rows | Span] | None = None
        if b"\r" not in text:
            for _ in range(skipped):
                text = text[text.index(b"\n") + 1 :]
            line, n_lines, skipped = line + skipped, n_lines - skipped, 0
            span = _span(text, line, width)
            found = None if span is None else [span]
        if found is None:
            found = _cut(file, io.StringIO(text.decode(), newline=""), line, width, n, skipped)
        for batch in found:
            yield batch
            n += len(batch.lines)
        line, skipped = line + n_lines, 0


def _span(text: bytes, line: int, width: int) -> Span | None:
    """Return the rows of a text, each of which ends its line; None where they are not all of `width` cells."""
    nbytes = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero((nbytes == _COMMA) | (nbytes == _END))
    n = text.count(b"\n")
    if not n or len(ends) != n * width or not (nbytes[ends[width - 1 :: width]] == _END).all():
        return None
    return Span(range(line, line + n), text, ends.reshape(n, width))


def _cut(file: str, text: Iterable[str], line: int, width: int, n: int, skipped: int) -> Iterator[Rows]:
    """Cut rows one by one; `line` is that of the text's first, `n` the number of rows before."""
    reader: Any = csv.reader(text)
    rows = ((line - 1 + reader.line_num, row) for row in reader if row and reader.line_num > skipped)
    while found := list(islice(rows, ROWS_AT_ONCE)):
        for row, (at, cells) in enumerate(found, n):
            if len(cells) != width:
                if n_ends := sum(cell.rstrip("\n").count("\n") for cell in cells):
                    where = f"row {row} (lines {at - n_ends} to {at})"
                    raise UserError(f"{file}: {where} has {len(cells)} cells, the first line has {width}; a quote is opened there and closed too late, or never: close it")
                raise UserError(f"{file}: row {row} (line {at}) has {len(cells)} cells, the first line has {width}; give all rows the same number")
        yield Rows(*zip(*found, strict=True))
        n += len(found)


def line_blocks(stream: IO[bytes], nbytes: int) -> Iterator[bytes]:
    """Cut a stream into blocks that end where a line does."""
    rest: list[bytes] = []
    while data := stream.read(nbytes):
        at = data.rfind(b"\n") + 1
        if at:
            yield b"".join([*rest, data[:at]])
            rest = []
        rest.append(data[at:])
    if last := b"".join(rest):
        yield last
