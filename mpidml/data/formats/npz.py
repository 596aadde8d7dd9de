"""Read NumPy's archives: named arrays x, y or x_train, y_train, x_test, y_test."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.arrays import Array, Arrays, from_names
from mpidml.data.formats.base import Format, Known, Label
from mpidml.data.stored import BLOCK_NBYTES, Decoded, Stored, by_columns, matrix_in, npy_header, rows_at_once


class Npz(Format):
    """`.npz`, compressed or not; arrays of other names are not decoded, pickled ones refused."""

    endings = (".npz",)
    lies_open = True

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array, not named arrays")
        with loaded as file:
            return from_names(str(path), file.files, file.__getitem__, known is not None)

    def stream(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one bare array, not named arrays")

            def get(name: str) -> Array | Stored | Decoded:
                return _rows(path, f"{name}.npy") if name.startswith("x") else file[name]

            return from_names(str(path), file.files, get, known is not None)


def _rows(path: Path, member: str) -> Stored | Decoded:
    """Return an array of the archive: where it lies, or, where it is packed, as it comes."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        shape, dtype, in_rows = npy_header(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, not numbers")
        info, header_nbytes = archive.getinfo(member), stream.tell()
        is_packed = info.compress_type != zipfile.ZIP_STORED
        while not is_packed and stream.read(BLOCK_NBYTES):  # to the end, where the sum of the bytes is looked at
            pass
    if is_packed:
        return Decoded(str(path), shape, dtype, [(0, shape[0])] if shape else [], partial(_blocks, path, member))
    with path.open("rb") as file:  # the local header, whose fields may be longer than those of the directory
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2").tolist()
    at = info.header_offset + 30 + name + extra + header_nbytes
    found = matrix_in(str(path), at, shape, dtype, path.stat().st_size)
    return found if in_rows else by_columns(str(path), at, shape, dtype)


def _blocks(path: Path, member: str, lo: int, hi: int) -> Iterator[Array]:
    """Unpack all rows, some at a time."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        shape, dtype, in_rows = npy_header(stream)
        if not in_rows:
            raise UserError(f"{path}: {member} is packed column by column, and no row is there before all is unpacked; write it by numpy.ascontiguousarray")
        row_nbytes = prod(shape[1:]) * dtype.itemsize
        step = rows_at_once(row_nbytes)
        for at in range(lo, hi, step):
            n = min(step, hi - at)
            if len(data := stream.read(n * row_nbytes)) < n * row_nbytes:
                raise ValueError(f"{member} ends in row {at + len(data) // max(row_nbytes, 1)} of {shape[0]}")
            yield np.frombuffer(data, dtype).reshape(n, -1)
        stream.read(1)  # the end, where the sum of the packed bytes is looked at
