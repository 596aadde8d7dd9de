"""Write predictions chunk by chunk, as a table of text or as arrays; the file takes its name when it is whole. Used by rank 0 alone.

    .csv    class,p_cat,p_dog     (score_... where the loss makes no probabilities)         a regression: target, or the names of several
    .npz    labels int64 (n,), classes (k,) text, probabilities or scores (n, k)            a regression: targets float64 (n, k)

Of several heads each name begins with that of its head: kind.class, price.target.
"""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.role import Array


class Told(NamedTuple):
    """What is written of one thing that was learnt: names of classes and whether their values are probabilities and of which dtype, or of targets.

    `head`: where several heads learn, the name that opens those of its columns and arrays.
    """

    classes: Sequence[str]
    targets: Sequence[str]
    has_probabilities: bool
    dtype: Any
    head: str = ""

    @property
    def opening(self) -> str:
        """What its names begin with."""
        return f"{self.head}." if self.head else ""

    @property
    def columns(self) -> list[str]:
        """The columns of the table."""
        kind = "p" if self.has_probabilities else "score"
        return [f"{self.opening}{name}" for name in (["class", *(f"{kind}_{name}" for name in self.classes)] if self.classes else self.targets)]

    @property
    def array(self) -> tuple[str, Any, int]:
        """Name, dtype and width of the array of values."""
        name, dtype = ("probabilities" if self.has_probabilities else "scores", self.dtype) if self.classes else ("targets", np.float64)
        return f"{self.opening}{name}", np.dtype(dtype), len(self.classes or self.targets)


class Chunk(NamedTuple):
    """Some rows: the classes' numbers int64 (m,), None in a regression, and values (m, k)."""

    labels: Array | None
    values: Array


def check(out: str) -> None:
    """Refuse a file that cannot be written, or is there already."""
    path = Path(out)
    if os.path.lexists(path):
        raise UserError(f"--out {out}: is there already; choose another --out or remove it")
    if not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}; make it, or choose another --out")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: no permission to write to {path.parent}; choose another --out")


def write(out: str, n: int, told: Sequence[Told], chunks: Iterable[Sequence[Chunk]]) -> None:
    """Write all chunks, `n` rows of each thing that is `told`, to `out`; after an error nothing is left of it."""
    path = Path(out)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            (_write_csv if out.endswith(".csv") else _write_npz)(file, n, told, chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_csv(file: IO[bytes], n: int, told: Sequence[Told], chunks: Iterable[Sequence[Chunk]]) -> None:
    """Numbers are the shortest that read back to the same bits."""
    import io

    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([name for of in told for name in of.columns])
    for chunk in chunks:
        cells = [_cells(of, some) for of, some in zip(told, chunk, strict=True)]
        rows.writerows(chain.from_iterable(row) for row in zip(*cells, strict=True))
    text.detach()


def _cells(told: Told, chunk: Chunk) -> list[list[str]]:
    values: list[list[str]] = chunk.values.astype(str).tolist()
    return values if chunk.labels is None else [[told.classes[c], *of] for c, of in zip(chunk.labels.tolist(), values, strict=True)]


def _write_npz(file: IO[bytes], n: int, told: Sequence[Told], chunks: Iterable[Sequence[Chunk]]) -> None:
    """The values of the first go straight to the archive; labels, and values of other heads, are kept to its end."""
    kept: list[list[Chunk]] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with _entry(archive, told[0].array[0]) as to:
            _header(to, n, told[0])
            for first, *others in chunks:
                to.write(np.ascontiguousarray(first.values, told[0].array[1]).tobytes())
                kept.append([Chunk(first.labels, first.values[:0]), *others])
        for i, of in enumerate(told):
            if i:
                with _entry(archive, of.array[0]) as to:
                    _header(to, n, of)
                    for some in kept:
                        to.write(np.ascontiguousarray(some[i].values, of.array[1]).tobytes())
            if of.classes:
                labels = np.concatenate([labels for some in kept if (labels := some[i].labels) is not None])
                for name, array in (("labels", labels), ("classes", np.array(of.classes))):
                    with _entry(archive, f"{of.opening}{name}") as to:
                        np.lib.format.write_array(to, array, allow_pickle=False)


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _header(to: IO[bytes], n: int, told: Told) -> None:
    """Open an array whose rows follow."""
    _, dtype, width = told.array
    np.lib.format.write_array_header_1_0(to, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, width)})
