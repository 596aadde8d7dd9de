"""Read HDF5: data sets x, y or x_train, y_train, x_test, y_test at the root of the file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from mpidml.data.arrays import Array, Arrays, from_names
from mpidml.data.formats.base import Format, Known, Label, package
from mpidml.data.stored import Decoded, Stored, matrix_in, rows_at_once


class Hdf5(Format):
    """`.h5` and `.hdf5`, by h5py."""

    endings = (".h5", ".hdf5")
    lies_open = True

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        h5py = package("h5py", path)
        with h5py.File(path, "r") as file:
            found = [name for name in file if isinstance(file[name], h5py.Dataset)]
            return from_names(str(path), found, lambda name: file[name][()], known is not None)

    def stream(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        h5py = package("h5py", path)
        with h5py.File(path, "r") as file:
            found = [name for name in file if isinstance(file[name], h5py.Dataset)]
            return from_names(str(path), found, lambda name: _rows(path, file[name]) if name.startswith("x") else file[name][()], known is not None)


def _rows(path: Path, data: Any) -> Stored | Decoded:
    """Return a data set: where it lies, if it lies in one piece, else its slices."""
    offset = data.id.get_offset()
    if offset is not None and not data.file.userblock_size and data.chunks is None and data.external is None and data.dtype.kind in "biuf":
        return matrix_in(str(path), offset, data.shape, data.dtype, path.stat().st_size)
    if not data.shape:
        return Decoded(str(path), (), data.dtype, [], partial(_blocks, path, data.name))
    tall = data.chunks[0] if data.chunks else 1
    step = -(-rows_at_once(prod(data.shape[1:]) * data.dtype.itemsize) // tall) * tall  # a chunk is unpacked once
    pieces = [(lo, min(lo + step, len(data))) for lo in range(0, len(data), step)]
    return Decoded(str(path), data.shape, data.dtype, pieces, partial(_blocks, path, data.name))


def _blocks(path: Path, name: str, lo: int, hi: int) -> Iterator[Array]:
    with package("h5py", path).File(path, "r") as file:
        yield file[name][lo:hi]
