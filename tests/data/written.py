"""Write one table of numbers in every format, each in the plainest way its own tools do it."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def csv(path: Path, x: Array, y: Array) -> str:
    lines = [",".join([*(f"c{j}" for j in range(x.shape[1])), "label"])]
    lines += [",".join(map(repr, [*row, label])) for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    return text(path, "\n".join(lines) + "\n")


def text(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def svmlight(path: Path, x: Array, y: Array, base: int = 1) -> str:
    rows = [
        " ".join([repr(label), *(f"{j + base}:{value!r}" for j, value in enumerate(row) if value)])
        for row, label in zip(x.tolist(), y.tolist(), strict=True)
    ]
    return text(path, "\n".join(rows) + "\n")


def idx(path: Path, x: Array, y: Array) -> str:
    idx_array(path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1")), y.astype(np.uint8))
    return idx_array(path, x.astype(np.uint8).reshape(len(x), 1, -1))


def idx_array(path: Path, a: Array) -> str:
    return text(path, struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape) + a.tobytes())


def npz(path: Path, x: Array, y: Array) -> str:
    np.savez(path, x=x, y=y)
    return str(path)


def npy(path: Path, x: Array, y: Array) -> str:
    np.save(path, x)
    np.save(path.with_name(f"y{path.name[1:]}"), y)
    return str(path)


def parquet(path: Path, x: Array, y: Array) -> str:
    import pyarrow
    import pyarrow.parquet

    columns = {f"c{j}": x[:, j] for j in range(x.shape[1])} | {"label": y}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=max(len(x) // 3, 1))
    return str(path)


def hdf5(path: Path, x: Array, y: Array) -> str:
    import h5py

    with h5py.File(path, "w") as file:
        file["x"], file["y"] = x, y
    return str(path)


Writer = Callable[[Path, Array, Array], str]
WRITERS: dict[str, tuple[Writer, tuple[str, ...]]] = {
    "csv": (csv, ("t{}.csv", "t{}.csv.gz")),
    "hdf5": (hdf5, ("t{}.h5",)),
    "idx": (idx, ("train{}-images-idx3-ubyte", "train{}-images-idx3-ubyte.gz")),
    "npy": (npy, ("x{}.npy",)),
    "npz": (npz, ("t{}.npz",)),
    "parquet": (parquet, ("t{}.parquet",)),
    "svmlight": (svmlight, ("t{}.svm", "t{}.libsvm.gz")),
}
"""Format -> how it is written, and its file names with a place for a number."""
NAMES = [(form, name) for form, (_, names) in WRITERS.items() for name in names]
