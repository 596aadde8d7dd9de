"""Read rows of a matrix that lies on the disk as it is, whole or in several files: any rows, in any order, into memory that the caller has.

    rows 7 3 8 1000 of     | file a: rows 0..99 | file b: rows 100..2099 |      one read for 3, one for 7 and 8 together, one of file b

Nothing is mapped: what a process holds of the rows is what it asked for.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
MOST_PIECES = 512
"""Rows in one call of the system; it takes 1024."""
BLOCK_NBYTES = 1 << 18
"""What is decoded or looked at together."""


class Segment(NamedTuple):
    """n rows that lie one after the other in a file from byte `offset` on; no path: in the scratch file."""

    path: str
    offset: int
    n: int
    dtype: str


class Stored:
    """Rows (n, ...) in segments. `fault`: where a value stands that is not finite, once somebody has looked."""

    def __init__(self, segments: Sequence[Segment], shape: tuple[int, ...], scratch: Any = None) -> None:
        self.segments, self.shape, self.scratch = tuple(segments), shape, scratch
        self.dtype = np.result_type(*(np.dtype(s.dtype) for s in segments)).newbyteorder("=")
        self.starts = np.cumsum([0, *(s.n for s in segments)])
        self.fault: tuple[int, int] | None = None
        self._files: dict[str, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the rows lie; another process opens the files itself."""
        return Stored, (self.segments, self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def width(self) -> int:
        return prod(self.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, n: int, width: int) -> Stored:
        """Return the same rows as a matrix."""
        return Stored(self.segments, (n, width), self.scratch)

    @classmethod
    def joined(cls, parts: Sequence[Stored]) -> Stored:
        """Return the rows of all parts, which are equally wide, in their order."""
        whole = cls([s for part in parts for s in part.segments], (sum(map(len, parts)), *parts[0].shape[1:]), parts[0].scratch)
        for part, start in zip(parts, np.cumsum([0, *map(len, parts)]).tolist(), strict=False):
            if part.fault is not None and whole.fault is None:
                whole.fault = part.fault[0] + start, part.fault[1]
        return whole

    def __getitem__(self, key: Any) -> Any:
        """Read rows (a slice or an array of numbers), one column of some rows, or one value."""
        rows, column = key if isinstance(key, tuple) else (key, slice(None))
        if isinstance(rows, slice):
            return self.read(range(self.shape[0])[rows])[:, column]
        return self.read(np.atleast_1d(rows))[0, column] if np.ndim(rows) == 0 else self.read(rows)[:, column]

    def read(self, rows: range | Array) -> Array:
        """Return the rows of these numbers (m, width) in `dtype`."""
        numbers = np.asarray(rows, np.int64)
        if len(self.segments) == 1:
            return self._of(0, numbers).astype(self.dtype, copy=False)
        out = np.empty((len(numbers), self.width), self.dtype)
        of = np.searchsorted(self.starts, numbers, "right") - 1
        for s in np.unique(of).tolist():
            out[of == s] = self._of(s, numbers[of == s] - self.starts[s])
        return out

    def _of(self, s: int, numbers: Array) -> Array:
        segment = self.segments[s]
        raw = np.empty((len(numbers), self.width), segment.dtype)
        fd, what = (self.scratch.fd, "the scratch file") if not segment.path else (self._open(segment.path), segment.path)
        gather(fd, segment.offset, numbers, raw, what)
        return raw

    def _open(self, path: str) -> int:
        if path not in self._files:
            self._files[path] = fd = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, fd)
        return self._files[path]


def gather(fd: int, offset: int, numbers: Array, out: Array, what: str) -> None:
    """Read the rows of these numbers into `out` (m, width), neighbours together; `offset` is where row 0 begins."""
    m, nbytes = len(numbers), out.strides[0]
    if not m or not nbytes:
        return
    flat: Any = out.reshape(-1).view(np.uint8)
    memory = memoryview(flat)
    if numbers[-1] - numbers[0] == m - 1 and (m < 3 or (np.diff(numbers) == 1).all()):
        _whole(fd, [memory], offset + int(numbers[0]) * nbytes, m * nbytes, what)
        return
    order = np.argsort(numbers)
    ascending = numbers[order]
    edges = [0, *(np.flatnonzero(np.diff(ascending) != 1) + 1).tolist(), m]
    places, firsts = (order * nbytes).tolist(), (ascending * nbytes + offset).tolist()
    for lo, hi in pairwise(edges):
        for a in range(lo, hi, MOST_PIECES):
            pieces = [memory[at : at + nbytes] for at in places[a : min(a + MOST_PIECES, hi)]]
            _whole(fd, pieces, firsts[a], len(pieces) * nbytes, what)


def _whole(fd: int, pieces: list[memoryview], offset: int, nbytes: int, what: str) -> None:
    """Fill the pieces one after the other."""
    done = os.preadv(fd, pieces, offset)
    while done < nbytes:  # a system reads 2 GB at most, and less where a signal comes
        rest, left = [], done
        for piece in pieces:
            if left < len(piece):
                rest.append(piece[left:])
            left = max(left - len(piece), 0)
        more = os.preadv(fd, rest, offset + done)
        if not more:
            raise EOFError(f"{what}: ends at byte {offset + done}, rows were there when the run began; do not change data while a run reads them")
        done += more


class Decoded:
    """Rows (n, ...) of a file that must be decoded before they can be read at will.

    `pieces`: rows [lo, hi) that can be decoded by themselves, in order; blocks(lo, hi) yields the rows of a piece in portions.
    """

    def __init__(self, path: str, shape: tuple[int, ...], dtype: Any, pieces: Sequence[tuple[int, int]], blocks: Callable[[int, int], Iterator[Array]]) -> None:
        self.path, self.shape, self.dtype, self.pieces, self.blocks = path, shape, np.dtype(dtype), pieces, blocks
        self.ndim = len(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, n: int, width: int) -> Decoded:
        """Return the same rows as a matrix."""
        return Decoded(self.path, (n, width), self.dtype, self.pieces, self.blocks)


def rows_at_once(row_nbytes: int, nbytes: int = BLOCK_NBYTES) -> int:
    """Return how many rows make a block."""
    return max(1, nbytes // max(row_nbytes, 1))


def matrix_in(path: str, offset: int, shape: tuple[int, ...], dtype: Any, file_nbytes: int) -> Stored:
    """Return the rows of an array in C order that lies in a file as it is; ValueError where the file is too short for it."""
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    if offset + prod(shape) * dtype.itemsize > file_nbytes:
        raise ValueError(f"it ends at byte {file_nbytes}, its array of shape {shape} at {offset + prod(shape) * dtype.itemsize}")
    return Stored([Segment(path, offset, shape[0] if shape else 0, dtype.str)], shape)


def by_columns(path: str, offset: int, shape: tuple[int, ...], dtype: Any) -> Decoded:
    """Return the rows of an array that lies in a file column by column: a block takes a piece of each column."""
    step = rows_at_once(prod(shape[1:]) * np.dtype(dtype).itemsize, 16 * BLOCK_NBYTES)
    pieces = [(lo, min(lo + step, shape[0])) for lo in range(0, shape[0], step)]
    return Decoded(path, shape, dtype, pieces, partial(_mapped, path, offset, shape, dtype))


def _mapped(path: str, offset: int, shape: tuple[int, ...], dtype: Any, lo: int, hi: int) -> Iterator[Array]:
    """Map the file for one block, and let it go: mapped pages count as memory."""
    yield np.array(np.memmap(path, dtype, "r", offset, shape, "F")[lo:hi])


def npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read the header of an array in NumPy's format: its shape, its type, whether it lies row by row."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, dtype, not fortran or len(shape) < 2
