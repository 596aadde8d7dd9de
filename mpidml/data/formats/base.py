"""Define what a format declares: the endings of its files, and how one file of it is read.

A file of this folder is a format; its name is the format's. `readers` finds the format by the ending, reads every file of a source, joins them,
and pairs training and test rows. So a format knows one file, and nothing of shards, test data or coding.
"""

from __future__ import annotations

import gzip
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from mpidml.core.errors import UserError
from mpidml.data.arrays import Arrays
from mpidml.data.columns import Known
from mpidml.data.raw import Label
from mpidml.data.sparse import SparseRows
from mpidml.data.table import Table

__all__ = ["Contents", "Format", "Known", "Label", "opened", "package"]

Contents = Arrays | Table | SparseRows


class Format:
    """A format of data files: `read` decodes one file. What a damaged file raises is told by `readers` as one that cannot be decoded."""

    endings: ClassVar[tuple[str, ...]] = ()
    is_table: ClassVar[bool] = False  # has named columns, one of which is the label
    is_sparse: ClassVar[bool] = False  # rows are pairs of index and value
    takes_labels: ClassVar[bool] = False  # labels lie in a file of their own
    lies_open: ClassVar[bool] = False  # a file may hold its rows as they are, one after the other

    def read(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Contents:
        """Read one file; `label` names the label's column of a table, or several, `labels` the file of the labels.

        `known`: the columns that a run learnt from, whose rows need no labels (y None, at empty); in place of `label` its labels' columns are looked for.
        """
        raise NotImplementedError

    def stream(self, path: Path, label: Label = None, labels: Path | None = None, known: Known | None = None) -> Any:
        """Open one file without reading its rows: `Arrays` whose x is `Stored` or `Decoded`, or what yields a table or sparse rows piece by piece.

        Pieces have `pieces() -> list[Piece]` and `parts(piece)`, which yields their rows in portions; see `streamed`.
        """
        raise UserError(f"{path}: files of this format are read whole; leave out --memory, or write it as .npy, HDF5, Parquet or CSV")

    def data_files(self, paths: Sequence[Path]) -> list[Path]:
        """Return those of a folder's files of this format that hold rows to train on."""
        return list(paths)


def opened(path: Path) -> IO[bytes]:
    """Open a file for its bytes, unpacked where it ends in .gz."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def package(name: str, path: Path) -> Any:
    """Import a package that only some formats need; UserError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{path}: reading this format needs {name.partition('.')[0]}, which is not installed; pip install 'mpidml[data]'") from None
