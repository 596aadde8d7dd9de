"""Read IDX, the format of the MNIST files: a header of big-endian numbers, then the values.

    0 0 type n_dimensions | size of dimension 0 | size of dimension 1 | ... | values, the last dimension fastest

Images have two dimensions or more, labels one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.arrays import Array, Arrays, as_matrix
from mpidml.data.formats.base import Format, Known, Label, opened
from mpidml.data.raw import decoded
from mpidml.data.stored import Decoded, Stored, matrix_in, rows_at_once

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
NAMES = tuple(f"idx{n}-{kind}" for n in (2, 3, 4) for kind in ("ubyte", "byte", "short", "int", "float", "double"))


class Idx(Format):
    """`train-images-idx3-ubyte(.gz)`: labels and the test files t10k-* are found beside it by name, or by --labels. Also `.idx(.gz)`."""

    endings = tuple(f"{name}{packed}" for name in (*NAMES, ".idx") for packed in ("", ".gz"))
    takes_labels = True
    lies_open = True

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        return self._arrays(path, labels, known, read_idx)

    def stream(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        return self._arrays(path, labels, known, _where)

    def _arrays(self, path: Path, labels: Path | None, known: Known | None, read: Callable[[Path], Any]) -> Arrays:
        of = labels or _beside(path)
        if of is None and known is not None:
            return Arrays(str(path), _images(path, read(path)), None)
        if of is None:
            raise UserError(
                f"{path}: there is no file of its labels beside it ({_labels_name(path.name) or 'no standard name'}); give it by --labels"
            )
        x, y = self._rows(path, of, read)
        test = _found(path, path.name.replace("train", "t10k", 1)) if labels is None and known is None and path.name.startswith("train") else None
        test_of = None if test is None else _beside(test)
        if test is None or test_of is None:
            return Arrays(str(path), x, y)
        return Arrays(str(path), x, y, *self._rows(test, test_of, read), test=(str(test), "x", "y"))

    def data_files(self, paths: Sequence[Path]) -> list[Path]:
        """Leave out labels, and test images that lie beside training images."""
        rows = [path for path in paths if "labels" not in path.name]
        return [path for path in rows if not path.name.startswith("t10k")] or rows

    def _rows(self, path: Path, labels: Path, read: Callable[[Path], Any]) -> tuple[Any, Array]:
        x, y = (decoded(str(of), partial(how, of)) for of, how in ((path, read), (labels, read_idx)))
        x = _images(path, x)
        if y.ndim != 1:
            raise UserError(f"{labels}: holds {y.ndim} dimensions, labels have 1; give the file of the labels")
        if len(x) != len(y):
            raise UserError(f"{path}: holds {len(x)} rows, {labels.name} has {len(y)} labels; give the two files that belong together")
        return x, y


def _images(path: Path, x: Any) -> Any:
    if x.ndim < 2:
        raise UserError(f"{path}: holds {x.ndim} dimension, as labels do; give the file of the images, and the labels by --labels")
    return as_matrix(x, f"{path}: the array")


def read_idx(path: Path) -> Array:
    """Read one array; UserError where the header is none of this format, or promises more or less than the file holds."""
    with opened(path) as file:
        shape, dtype = _header(path, file)
        data = file.read()
    _refuse_length(path, shape, dtype, len(data))
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _header(path: Path, file: IO[bytes]) -> tuple[list[int], np.dtype[Any]]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES or not head[3]:
        raise UserError(f"{path}: begins with the bytes {head.hex(' ')}, which are no IDX header (00 00, type, dimensions); give an IDX file")
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise UserError(f"{path}: ends within its header of {head[3]} dimension(s); write it again")
    return np.frombuffer(sizes, ">u4").tolist(), np.dtype(TYPES[head[2]])


def _refuse_length(path: Path, shape: list[int], dtype: np.dtype[Any], nbytes: int) -> None:
    wanted = prod(shape) * dtype.itemsize
    if nbytes != wanted:
        raise UserError(f"{path}: its header says {shape} values of {dtype.itemsize} byte(s), it holds {nbytes} bytes of them, not {wanted}; write it again")


def _where(path: Path) -> Stored | Decoded:
    """Return the array where it lies, or, where it is packed, as it comes."""
    with opened(path) as file:
        shape, dtype = _header(path, file)
        if path.name.lower().endswith(".gz"):
            return Decoded(str(path), tuple(shape), dtype.newbyteorder("="), [(0, shape[0])], partial(_blocks, path))
        at, nbytes = file.tell(), path.stat().st_size
    _refuse_length(path, shape, dtype, nbytes - at)
    return matrix_in(str(path), at, tuple(shape), dtype, nbytes)


def _blocks(path: Path, lo: int, hi: int) -> Iterator[Array]:
    """Unpack all rows, some at a time."""
    with opened(path) as file:
        shape, dtype = _header(path, file)
        row_nbytes = prod(shape[1:]) * dtype.itemsize
        step, nbytes = rows_at_once(row_nbytes), 0
        for at in range(lo, hi, step):
            data = file.read(min(step, hi - at) * row_nbytes)
            nbytes += len(data)
            if len(data) < min(step, hi - at) * row_nbytes:
                break
            yield np.frombuffer(data, dtype).reshape(-1, row_nbytes // dtype.itemsize).astype(dtype.newbyteorder("="))
        _refuse_length(path, shape, dtype, nbytes + len(file.read(1)))


def _labels_name(name: str) -> str | None:
    changed = re.sub(r"idx\d", "idx1", name.replace("images", "labels"))
    return changed if changed != name and "images" in name else None


def _beside(path: Path) -> Path | None:
    """Find the labels of a file of images by their standard name."""
    name = _labels_name(path.name)
    return None if name is None else _found(path, name)


def _found(path: Path, name: str) -> Path | None:
    """Find a file beside `path`, packed or not."""
    plain = name.removesuffix(".gz")
    return next((other for end in ("", ".gz") if (other := path.with_name(plain + end)).is_file()), None)
