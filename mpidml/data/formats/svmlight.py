"""Read svmlight text: a label, then index:value of what is not zero, a row a line; indices ascend; `#` opens a comment.

A block of lines is checked by counting bytes (how many words, how many colons, which word each colon is in) and then parsed in one call.
Only a block in which something is wrong is looked at line by line, to say what.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.formats.base import Format, opened
from mpidml.data.raw import Array
from mpidml.data.sparse import Line, SparseRows

BLOCK_NBYTES = 1 << 24
MOST_INDEX = 2**31 - 1
_BLANK = np.zeros(256, bool)
_BLANK[[9, 10, 11, 12, 13, 32]] = True


class Rows(NamedTuple):
    """The rows of a block: labels, how many pairs each has, the pairs, and the line of each row within the block."""

    labels: Array
    counts: Array
    indices: Array
    values: Array
    lines: Array


class Svmlight(Format):
    """`.svm`, `.svmlight`, `.libsvm`, packed or not; `qid:` is refused: rows are trained on one by one, not as rankings."""

    endings = tuple(f".{name}{packed}" for name in ("svm", "svmlight", "libsvm") for packed in ("", ".gz"))

    def read(self, path: Path, label: str | None = None, labels: Path | None = None) -> SparseRows:
        file, line = str(path), 1
        blocks: list[Rows] = []
        lowest, highest = Line(file, 0, MOST_INDEX), Line(file, 0, -1)
        with opened(path) as stream:
            for block in _blocks(stream):
                text = re.sub(rb"#[^\n]*", b"", block) if b"#" in block else block
                rows = _parsed(text)
                if rows is None:
                    _refuse(file, text, line)
                assert rows is not None
                if rows.indices.size:
                    lowest = min(lowest, _line(file, rows, int(rows.indices.argmin()), line), key=lambda found: found.feature)
                    highest = max(highest, _line(file, rows, int(rows.indices.argmax()), line), key=lambda found: found.feature)
                blocks.append(rows)
                line += block.count(b"\n")
        if not any(len(rows.labels) for rows in blocks):
            raise UserError(f"{file}: the file holds no rows; give lines of a label and index:value pairs")
        if highest.feature < 0:
            raise UserError(f"{file}: no row holds an index:value pair; give at least one feature")
        labels_, counts, indices, values = (np.concatenate([rows[i] for rows in blocks]) for i in range(4))
        return SparseRows(file, labels_, np.concatenate([[0], np.cumsum(counts)]), indices, values, lowest, highest)


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Cut a stream into blocks that end where a line does."""
    rest = b""
    while data := stream.read(BLOCK_NBYTES):
        at = data.rfind(b"\n") + 1
        if at:
            yield rest + data[:at]
            rest = data[at:]
        else:
            rest += data
    if rest:
        yield rest


def _parsed(text: bytes) -> Rows | None:
    """Parse a block without comments; None where any of it is not as it should be."""
    nbytes = np.frombuffer(text, np.uint8)
    blank, colons = _BLANK[nbytes], np.flatnonzero(nbytes == ord(":"))
    starts = np.flatnonzero(~blank & np.concatenate([[True], blank[:-1]]))  # of words
    ends = np.flatnonzero(nbytes == ord("\n"))
    words, pairs = (np.diff(np.searchsorted(at, ends), prepend=0, append=len(at)) for at in (starts, colons))
    lines = np.flatnonzero(words)
    if not len(lines):
        return Rows(np.empty(0), lines, np.empty(0, np.int32), np.empty(0), lines)
    n_words, counts = words[lines], pairs[lines]
    if (n_words != counts + 1).any() or len(colons) != counts.sum():
        return None
    # The k-th colon of a row stands in its k-th word after the label, so each of these has one.
    first = np.concatenate([[0], np.cumsum(n_words)[:-1]])
    of = np.repeat(np.arange(len(lines)), counts)
    place = np.arange(len(colons)) - np.repeat(np.cumsum(counts) - counts, counts)
    if (np.searchsorted(starts, colons, "right") - 1 != first[of] + 1 + place).any():
        return None
    if len(colons) and (blank[colons - 1].any() or colons[-1] == len(text) - 1 or blank[colons + 1].any()):
        return None
    numbers = _numbers(text)
    if numbers is None or len(numbers) != len(starts) + len(colons) or not np.isfinite(numbers).all():
        return None
    at = first + np.concatenate([[0], np.cumsum(counts)[:-1]])
    is_pair = np.ones(len(numbers), bool)
    is_pair[at] = False
    index, value = numbers[is_pair].reshape(-1, 2).T
    ascends = np.diff(index, prepend=-1) > 0
    if ((index < 0) | (index > MOST_INDEX) | (index != np.floor(index)) | ~(ascends | (place == 0))).any():
        return None
    return Rows(numbers[at], counts, index.astype(np.int32), value.copy(), lines)


def _numbers(text: bytes) -> Array | None:
    """Parse all numbers of a text at once; None where anything else stands there."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text.replace(b":", b" ").decode("ascii"), sep=" ")
        except (DeprecationWarning, ValueError):
            return None


def _line(file: str, rows: Rows, pair: int, first_line: int) -> Line:
    row = int(np.searchsorted(np.cumsum(rows.counts), pair, "right"))
    return Line(file, first_line + int(rows.lines[row]), int(rows.indices[pair]))


def _refuse(file: str, text: bytes, first_line: int) -> None:
    """Raise the UserError for the first line of a block that is wrong."""
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
