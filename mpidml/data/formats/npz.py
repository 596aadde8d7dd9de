"""Read NumPy's archives: named arrays x, y or x_train, y_train, x_test, y_test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpidml.data.arrays import Arrays, from_names
from mpidml.data.formats.base import Format, Known, Label


class Npz(Format):
    """`.npz`, compressed or not; arrays of other names are not decoded, pickled ones refused."""

    endings = (".npz",)

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array, not named arrays")
        with loaded as file:
            return from_names(str(path), file.files, file.__getitem__, known is not None)
