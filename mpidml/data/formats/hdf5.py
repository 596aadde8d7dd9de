"""Read HDF5: data sets x, y or x_train, y_train, x_test, y_test at the root of the file."""

from __future__ import annotations

from pathlib import Path

from mpidml.data.arrays import Arrays, from_names
from mpidml.data.formats.base import Format, Known, Label, package


class Hdf5(Format):
    """`.h5` and `.hdf5`, by h5py."""

    endings = (".h5", ".hdf5")

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        h5py = package("h5py", path)
        with h5py.File(path, "r") as file:
            found = [name for name in file if isinstance(file[name], h5py.Dataset)]
            return from_names(str(path), found, lambda name: file[name][()], known is not None)
