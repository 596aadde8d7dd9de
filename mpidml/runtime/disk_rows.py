"""Stand in the place of an array of scaled rows that live on the disk: the same spelling, the same bits, rows read when they are asked for.

    x.take(index, 0, out, "clip")     x[lo:hi], x[index]: more of the kind, nothing read yet     numpy.asarray(x[lo:hi]), out[...] = x[lo:hi]: read

Parts of one x that are asked for from its start to its end, as scoring does, are read ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.data.scaling import Scaler
from mpidml.data.stored import Stored, rows_at_once
from mpidml.runtime.reads import Places, Portions, Reads


class DiskRows:
    """Rows (n, features) number `numbers` of `stored`, scaled (None: as they lie there) and in `dtype`."""

    def __init__(self, stored: Stored, numbers: range | Array, scaler: Scaler | None, dtype: Any, reads: Reads) -> None:
        self.stored, self.numbers, self.scaler, self.dtype, self.reads = stored, numbers, scaler, np.dtype(dtype), reads
        self.shape = (len(numbers), stored.width)
        self._whole: DiskRows | None = None  # of which this is rows `_lo` and those after
        self._lo = 0
        self._ahead: Portions | None = None
        self._step = 0  # rows that are asked for together, one after the other

    ndim = 2

    @property
    def disk_nbytes(self) -> int:
        """The bytes that these rows take on the disk."""
        return len(self) * self.shape[1] * self.stored.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Return some rows, not read yet; or column c of some rows as an array, by x[rows, c]."""
        if isinstance(key, tuple):
            rows, column = self[key[0]], key[1]
            out = np.empty(len(rows), self.dtype)
            step = rows_at_once(self.shape[1] * self.dtype.itemsize)
            for lo in range(0, len(rows), step):
                out[lo : lo + step] = np.asarray(rows[lo : lo + step])[:, column]
            return out
        if isinstance(key, slice):
            part = DiskRows(self.stored, self.numbers[key], self.scaler, self.dtype, self.reads)
            lo, _, step = key.indices(len(self))
            if step == 1:
                part._whole, part._lo = self, lo
            return part
        return DiskRows(self.stored, self._numbers(np.atleast_1d(key)), self.scaler, self.dtype, self.reads)

    def take(self, index: Array, axis: int = 0, out: Array | None = None, mode: str = "raise") -> Array:
        """Return the rows of these numbers, in `out` where it is given; axis must be 0."""
        if axis:
            raise ValueError("rows on the disk are taken along axis 0")
        found = np.empty((len(index), self.shape[1]), self.dtype) if out is None else out
        return self.reads.now(lambda: self.read(np.asarray(index), found))  # type: ignore[no-any-return]

    def read(self, index: Array, out: Array) -> Array:
        """Read and scale the rows of these numbers, some at a time, and return `out`."""
        step = rows_at_once(self.shape[1] * 8)
        for lo in range(0, len(index), step):
            raw = self.stored.read(self._numbers(index[lo : lo + step]))
            if self.scaler is None:
                out[lo : lo + step] = raw
            else:
                with np.errstate(over="ignore"):
                    self.scaler.apply(raw, out[lo : lo + step])
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Read all rows."""
        whole = self._whole
        row_nbytes = self.shape[1] * self.dtype.itemsize
        if whole is None or not 0 < len(self) < rows_at_once(row_nbytes, self.reads.portion_nbytes) or len(self) == len(whole):
            out = np.empty(self.shape, self.dtype)
            self.reads.now(lambda: self.read(np.arange(len(self)), out))
        else:
            out = whole._part(self._lo, len(self))
        return out if dtype is None else out.astype(dtype, copy=False)

    def _numbers(self, index: Array) -> Array:
        if isinstance(self.numbers, range):
            return self.numbers.start + self.numbers.step * index
        return self.numbers[index]

    def _part(self, lo: int, n: int) -> Array:
        """Return rows that are probably followed by as many more."""
        if self._ahead is None or n > self._step or lo % self._step:
            self._ahead, self._step = self._in_turn(n), n
        step, end = self._step, len(self)
        found: Array = self._ahead.get(lo, lambda last: last + step if last + step < end else None)
        return found[:n]

    def _in_turn(self, step: int) -> Portions:
        own, end = rows_at_once(self.shape[1] * self.dtype.itemsize, self.reads.portion_nbytes) // step * step, len(self)
        places = Places(self.shape[1], self.dtype)

        def read(starts: list[int], place: int) -> dict[int, Array]:
            first, n = starts[0], min(starts[-1] + step, end) - starts[0]
            rows = self.read(np.arange(first, first + n), places.rows(place, n))
            return {at: rows[at - first : at - first + step] for at in starts}

        return Portions(self.reads, lambda at: list(range(at, min(at + own, end), step)), read)

    def feed(self, rows_of: Callable[[int], Array], following: Callable[[int], int | None], n_rows: int, sure: bool) -> Feed:
        """Return what reads a worker's blocks ahead."""
        return Feed(self, rows_of, following, n_rows, sure)


class Feed:
    """Give a worker the rows of its blocks, those to come read ahead: `rows_of(block)` are a block's, `following(block)` is the next or None."""

    def __init__(self, x: DiskRows, rows_of: Callable[[int], Array], following: Callable[[int], int | None], n_rows: int, sure: bool) -> None:
        """`n_rows`: the most of a block; `sure`: whether `following` is more than a guess."""
        self.x, self.rows_of, self.following = x, rows_of, following
        self.n_blocks = rows_at_once(n_rows * x.shape[1] * x.dtype.itemsize, x.reads.portion_nbytes) if sure else 1
        self.places = Places(x.shape[1], x.dtype)
        self.portions = Portions(x.reads, self._plan, self._read)
        self.index: dict[int, Array] = {}

    def block(self, block: int, index: Array) -> Array:
        """Return the rows (n, features) of a block, number `index`, read at once where others were read for it; they are good until the next call."""
        planned, found = self.portions.get(block, self.following)
        return found if np.array_equal(planned, index) else self.x.take(index)

    def _plan(self, block: int) -> list[Any]:
        """Name the blocks of a portion, and find their rows: here, since orders are drawn by the worker's thread alone."""
        blocks: list[int] = [block]
        while len(blocks) < self.n_blocks and (after := self.following(blocks[-1])) is not None:
            blocks.append(after)
        self.index = {b: self.rows_of(b) for b in blocks}
        return blocks

    def _read(self, blocks: Sequence[int], place: int) -> dict[int, tuple[Array, Array]]:
        index = [self.index[b] for b in blocks]
        rows = self.places.rows(place, sum(map(len, index)))
        self.x.read(np.concatenate(index), rows)
        found, at = {}, 0
        for block, own in zip(blocks, index, strict=True):
            found[block] = own, rows[at : at + len(own)]
            at += len(own)
        return found
