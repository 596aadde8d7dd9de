"""Read NumPy's bare arrays: rows in one file, mapped into memory, labels in another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.arrays import Arrays, as_matrix
from mpidml.data.formats.base import Format, Known, Label
from mpidml.data.raw import decoded
from mpidml.data.stored import Decoded, Stored, by_columns, matrix_in, npy_header


class Npy(Format):
    """`.npy`: labels by --labels, else beside `x.npy` in `y.npy` (x_train.npy in y_train.npy); rows are read when they are copied, not before."""

    endings = (".npy",)
    lies_open = True
    takes_labels = True

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        return _arrays(path, labels, known, lambda: np.load(path, mmap_mode="r", allow_pickle=False))

    def stream(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Arrays:
        return _arrays(path, labels, known, lambda: _where(path))

    def data_files(self, paths: Sequence[Path]) -> list[Path]:
        """Leave out labels that lie beside their rows."""
        rows = {path.name for path in paths if path.name.startswith("x")}
        return [path for path in paths if not (path.name.startswith("y") and f"x{path.name[1:]}" in rows)]


def _arrays(path: Path, labels: Path | None, known: Known | None, rows: Callable[[], Any]) -> Arrays:
    beside = path.with_name(f"y{path.name[1:]}") if path.name.startswith("x") else None
    labels = labels or beside
    if known is not None and labels is beside and not (beside is not None and beside.is_file()):
        return Arrays(str(path), as_matrix(rows(), f"{path}: the array"), None)
    if labels is None or not labels.is_file():
        at = f"there is no {labels}" if labels is not None else "its labels lie in a file of their own"
        raise UserError(f"{path}: {at}; give the file of the labels by --labels")
    x, y = rows(), decoded(str(labels), partial(np.load, labels, allow_pickle=False))
    if not isinstance(y, np.ndarray):
        raise UserError(f"{labels}: holds named arrays ({', '.join(y.files)}), not one of labels; write it by numpy.save")
    return Arrays(str(path), as_matrix(x, f"{path}: the array"), y)


def _where(path: Path) -> Stored | Decoded:
    """Return the array where it lies."""
    with path.open("rb") as file:
        shape, dtype, in_rows = npy_header(file)
        found = matrix_in(str(path), file.tell(), shape, dtype, path.stat().st_size)
        return found if in_rows else by_columns(str(path), file.tell(), shape, dtype)
