"""Read svmlight text: a label, then index:value of what is not zero, a row a line; indices ascend; `#` opens a comment.

A block of lines is parsed at once: its labels, its indices, its values. Only a block in which something is wrong is looked at line by line, to say what.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.csv_rows import Piece, line_blocks
from mpidml.data.decimals import parse
from mpidml.data.formats.base import Format, Known, Label, opened
from mpidml.data.raw import Array
from mpidml.data.sparse import Line, SparseRows

BLOCK_NBYTES = 1 << 18
MOST_INDEX = 2**31 - 1
_BLANK = np.zeros(256, bool)
_BLANK[[9, 10, 11, 12, 13, 32]] = True


class Rows(NamedTuple):
    """The rows of a block: labels, how many pairs each has, the pairs, the line of each row within the block, and whether a label has a plus sign."""

    labels: Array
    counts: Array
    indices: Array
    values: Array
    lines: Array
    plus: bool


class Svmlight(Format):
    """`.svm`, `.svmlight`, `.libsvm`, packed or not; `qid:` is refused: rows are trained on one by one, not as rankings."""

    endings = tuple(f".{name}{packed}" for name in ("svm", "svmlight", "libsvm") for packed in ("", ".gz"))
    is_sparse = True

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> SparseRows:
        with opened(path) as stream:
            blocks = [_rows(str(path), block, line) for block, line in _blocks(stream)]
        found = SparseRows.joined(str(path), blocks or [_rows(str(path), b"", 1)])
        found.refuse_empty()
        return found

    def stream(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> SvmlightFile:
        return SvmlightFile(path)


class SvmlightFile(NamedTuple):
    """Sparse rows to be read piece by piece, each some whole lines; a packed file is a single piece."""

    path: Path

    def pieces(self) -> list[Piece]:
        """Count the rows."""
        found: list[Piece] = []
        offset = row = 0
        with opened(self.path) as stream:
            for block, line in _blocks(stream):
                n = sum(1 for text in _unmarked(block, line).split(b"\n") if text.partition(b"#")[0].strip())
                found.append(Piece(offset, len(block), line, row, n))
                offset, row = offset + len(block), row + n
        return [Piece(0, -1, 1, 0, row)] if self.path.name.lower().endswith(".gz") else found

    def parts(self, piece: Piece) -> Iterator[SparseRows]:
        """Read a piece, a block of lines at a time."""
        with opened(self.path) as stream:
            if piece.nbytes < 0:
                yield from (_rows(str(self.path), block, line) for block, line in _blocks(stream))
            else:
                stream.seek(piece.offset)
                yield _rows(str(self.path), stream.read(piece.nbytes), piece.line)


def _blocks(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Cut a file into blocks of whole lines, each with the number of its first."""
    line = 1
    for block in line_blocks(stream, BLOCK_NBYTES):
        yield block, line
        line += block.count(b"\n")


def _unmarked(block: bytes, line: int) -> bytes:
    """Return a block without the byte order mark that some editors begin a file of UTF-8 with."""
    return block.removeprefix(b"\xef\xbb\xbf") if line == 1 else block


def _rows(file: str, block: bytes, line: int) -> SparseRows:
    """Parse a block; UserError for the first line that is wrong."""
    text = _unmarked(block, line)
    text = re.sub(rb"#[^\n]*", b"", text) if b"#" in text else text
    rows = _parsed(text)
    if rows is None:
        _refuse(file, text, line)
    assert rows is not None
    lowest, highest = Line(file, 0, MOST_INDEX), Line(file, 0, -1)
    if rows.indices.size:
        lowest, highest = (_line(file, rows, int(at), line) for at in (rows.indices.argmin(), rows.indices.argmax()))
    return SparseRows(file, rows.labels, np.concatenate([[0], np.cumsum(rows.counts)]), rows.indices, rows.values, lowest, highest, rows.plus)


def _parsed(text: bytes) -> Rows | None:
    """Parse a block without comments; None where any of it is not as it should be."""
    nbytes = np.frombuffer(text, np.uint8)
    blank, colons = _BLANK[nbytes], np.flatnonzero(nbytes == ord(":"))
    edges = np.flatnonzero(np.diff(blank, prepend=True, append=True))
    starts, ends = edges[::2], edges[1::2]  # of words
    words = np.diff(np.searchsorted(starts, np.flatnonzero(nbytes == ord("\n"))), prepend=0, append=len(starts))
    lines = np.flatnonzero(words)
    counts = words[lines] - 1
    first = np.cumsum(words[lines]) - words[lines]  # the label's word
    is_pair = np.ones(len(starts), bool)
    is_pair[first] = False
    begin, end = starts[is_pair], ends[is_pair]
    if len(colons) != len(begin):
        return None
    # The k-th colon must part the k-th pair: where it lies elsewhere, one of the two is no number.
    found = [parse(text, *of) for of in ((starts[first], ends[first]), (begin, colons), (colons + 1, end))]
    if any(bad.any() or not np.isfinite(values).all() for values, bad in found):
        return None
    labels, index, values = (numbers for numbers, _ in found)
    ascends = np.diff(index, prepend=-1) > 0
    ascends[(np.cumsum(counts) - counts)[counts > 0]] = True
    if ((index < 0) | (index > MOST_INDEX) | (index != np.floor(index)) | ~ascends).any():
        return None
    return Rows(labels, counts, index.astype(np.int32), values, lines, bool((nbytes[starts[first]] == ord("+")).any()))


def _line(file: str, rows: Rows, pair: int, first_line: int) -> Line:
    row = int(np.searchsorted(np.cumsum(rows.counts), pair, "right"))
    return Line(file, first_line + int(rows.lines[row]), int(rows.indices[pair]))


def _refuse(file: str, text: bytes, first_line: int) -> None:
    """Raise the UserError for the first line of a block that is wrong."""
    if b"\0" in text:
        line = first_line + text[: text.index(b"\0")].count(b"\n")
        raise UserError(f"{file}: line {line} holds a zero byte, as UTF-16 does; save the file as UTF-8")
    for number, row in enumerate(text.split(b"\n"), first_line):
        words = [word.decode(errors="backslashreplace") for word in row.split()]
        if not words:
            continue
        where = f"{file}: line {number}"
        if not _is_number(words[0]):
            raise UserError(f"{where} has the label '{words[0]}', not a finite number; begin each line with one")
        before = -1
        for word in words[1:]:
            name, colon, value = word.partition(":")
            if name == "qid":
                raise UserError(f"{where} holds '{word}', a query of a ranking; rows are trained on one by one here: remove it")
            if not colon:
                raise UserError(f"{where} holds '{word}', which is no index:value; write such pairs, separated by blanks")
            if not name.isdecimal() or int(name) > MOST_INDEX:
                raise UserError(f"{where} holds '{word}', whose index is not a whole number up to {MOST_INDEX}; write such an index")
            if not _is_number(value):
                raise UserError(f"{where} holds '{word}', whose value is not a finite number; write one")
            if int(name) <= before:
                raise UserError(f"{where} has index {name} after {before}; sort each line by index, each index once")
            before = int(name)
    raise ValueError("a line is damaged")


def _is_number(text: str) -> Any:
    try:
        return isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
