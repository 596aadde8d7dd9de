"""Write predictions chunk by chunk, as a table of text or as arrays; the file takes its name when it is whole. Used by rank 0 alone.

    .csv    class,p_cat,p_dog     (score_... where the loss makes no probabilities)         a regression: target, or the names of several
    .npz    labels int64 (n,), classes (k,) text, probabilities or scores (n, k)            a regression: targets float64 (n, k)
"""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.role import Array


class Told(NamedTuple):
    """What is written of a row: classes' names, whether their values are probabilities and of which dtype, or in a regression the targets' names."""

    classes: list[str]
    targets: list[str]
    has_probabilities: bool
    dtype: Any


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


def write(out: str, n: int, told: Told, chunks: Iterable[Chunk]) -> None:
    """Write all chunks, `n` rows, to `out`; after an error nothing is left of it."""
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


def _write_csv(file: IO[bytes], n: int, told: Told, chunks: Iterable[Chunk]) -> None:
    """Numbers are the shortest that read back to the same bits."""
    import io

    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    rows = csv.writer(text, lineterminator="\n")
    kind = "p" if told.has_probabilities else "score"
    rows.writerow(["class", *(f"{kind}_{name}" for name in told.classes)] if told.classes else told.targets)
    for labels, values in chunks:
        cells = values.astype(str).tolist()
        rows.writerows(cells if labels is None else ([told.classes[c], *of] for c, of in zip(labels.tolist(), cells, strict=True)))
    text.detach()


def _write_npz(file: IO[bytes], n: int, told: Told, chunks: Iterable[Chunk]) -> None:
    """The values go straight to the archive; only a number a row is kept to its end."""
    name, dtype = ("probabilities" if told.has_probabilities else "scores", told.dtype) if told.classes else ("targets", np.dtype(np.float64))
    labels: list[Array] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as to:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (n, len(told.classes or told.targets))}
            np.lib.format.write_array_header_1_0(to, header)
            for some, values in chunks:
                to.write(np.ascontiguousarray(values, dtype).tobytes())
                labels += [] if some is None else [some]
        if told.classes:
            for other, array in (("labels", np.concatenate(labels)), ("classes", np.array(told.classes))):
                with archive.open(zipfile.ZipInfo(f"{other}.npy"), "w", force_zip64=True) as to:
                    np.lib.format.write_array(to, array, allow_pickle=False)
