"""Answer "how fast are data files read?": `python benchmarks/reading/run.py [--rounds R] [--rows N] [--smoke]`."""

from __future__ import annotations

import argparse
import gzip
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

from benchmarks.machine import Watch, describe
from benchmarks.rounds import Rounds, Sample, interleave

COLUMNS, SMOKE_ROWS = 50, 40
BINARY, TEXT = 2.0, 1.0
"""Targets: ours takes at most so many times as long as the library beside it, for formats of bytes and for formats of text."""


class Case(NamedTuple):
    """A file, what reads it beside us (None: nothing is installed that does), and the target."""

    path: Path
    peers: dict[str, Callable[[], Any]]
    target: float


def write(folder: Path, n: int, kind: str) -> dict[str, Case]:
    """Write n rows in every format: "counts" are small whole numbers, four of five of them 0; "measures" have six significant digits."""
    import h5py
    import numpy as np
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    random = np.random.Generator(np.random.Philox(key=7))
    if kind == "counts":
        x = random.integers(1, 256, (n, COLUMNS)) * (random.random((n, COLUMNS)) < 0.2)
    else:
        x = np.array([float(f"{value:.6g}") for value in random.normal(0, 30, n * COLUMNS)]).reshape(n, COLUMNS)
    y = np.arange(n) % 10
    np.savez(folder / "t.npz", x=x, y=y)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    with h5py.File(folder / "t.h5", "w") as file:
        file["x"], file["y"] = x, y
    names = [f"c{j}" for j in range(COLUMNS)]
    pyarrow.parquet.write_table(pyarrow.table({name: x[:, j] for j, name in enumerate(names)} | {"y": y}), folder / "t.parquet")
    lines = [",".join([*names, "y"]), *(",".join(map(repr, [*row, label])) for row, label in zip(x.tolist(), y.tolist(), strict=True))]
    text = ("\n".join(lines) + "\n").encode()
    (folder / "t.csv").write_bytes(text)
    (folder / "t.csv.gz").write_bytes(gzip.compress(text, 6))
    pairs = ([f"{j}:{value!r}" for j, value in enumerate(row, 1) if value] for row in x.tolist())
    (folder / "t.svm").write_text("".join(f"{label} {' '.join(row)}\n" for label, row in zip(y.tolist(), pairs, strict=True)))
    if kind == "counts":
        (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, n, 1, COLUMNS) + x.astype(np.uint8).tobytes())
        (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, n) + y.astype(np.uint8).tobytes())

    def npz() -> Any:
        with np.load(folder / "t.npz") as file:
            return file["x"]

    def hdf5() -> Any:
        with h5py.File(folder / "t.h5") as file:
            return file["x"][()]

    def columns(table: Any) -> Any:
        return np.stack([table.column(name).to_numpy() for name in names], axis=1)

    def arrow_csv(name: str) -> Any:
        return columns(pyarrow.csv.read_csv(folder / name, read_options=pyarrow.csv.ReadOptions(use_threads=False)))

    def loadtxt(name: str) -> Any:
        return np.loadtxt(folder / name, delimiter=",", skiprows=1)[:, :-1]

    cases = {
        "npz": Case(folder / "t.npz", {"numpy.load": npz}, BINARY),
        "npy": Case(folder / "x.npy", {"numpy.load": lambda: np.load(folder / "x.npy")}, BINARY),
        "hdf5": Case(folder / "t.h5", {"h5py": hdf5}, BINARY),
        "parquet": Case(
            folder / "t.parquet", {"pyarrow": lambda: columns(pyarrow.parquet.read_table(folder / "t.parquet", use_threads=False))}, BINARY
        ),
        "csv": Case(folder / "t.csv", {"numpy.loadtxt": lambda: loadtxt("t.csv"), "pyarrow.csv": lambda: arrow_csv("t.csv")}, TEXT),
        "csv.gz": Case(folder / "t.csv.gz", {"numpy.loadtxt": lambda: loadtxt("t.csv.gz"), "pyarrow.csv": lambda: arrow_csv("t.csv.gz")}, TEXT),
        "svmlight": Case(folder / "t.svm", {}, TEXT),
    }
    try:
        from sklearn.datasets import load_svmlight_file
    except ImportError:
        print("scikit-learn is not installed: svmlight is read by us alone")
    else:
        cases["svmlight"].peers["scikit-learn"] = lambda: load_svmlight_file(str(folder / "t.svm"))[0]
    if kind == "counts":
        images = folder / "train-images-idx3-ubyte"
        cases["idx"] = Case(images, {"numpy.fromfile": lambda: np.fromfile(images, np.uint8, offset=16).reshape(n, -1)}, BINARY)
    return cases


def timed(read: Callable[[], Any]) -> Sample:
    """Read once, from the page cache."""
    with Watch() as watch:
        started = time.process_time()
        read()
        cpu = time.process_time() - started
    return Sample(watch.seconds, watch.others(), {"cpu": cpu})


def check_same(ours: Any, theirs: Any, name: str) -> None:
    """Raise AssertionError unless both read the same values."""
    import numpy as np

    a, b = (np.asarray(x.toarray() if hasattr(x, "toarray") else x, np.float64) for x in (ours, theirs))
    assert a.shape == b.shape and (a == b).all(), f"{name} reads other values than ours; a comparison would mean nothing"


def report(kind: str, form: str, case: Case, rounds: Rounds, n: int) -> list[str]:
    """Print a line a reader; return what missed its target."""
    size, missed = case.path.stat().st_size, []
    for name in rounds.samples:
        cpu = rounds.extra(name, "cpu")
        line = f"{kind:9s}{form:9s}{name:14s}{size / 1e6:7.1f} MB  {1e3 * cpu:8.1f} ms CPU  {size / cpu / 1e6:7.0f} MB/s  {n * COLUMNS / cpu / 1e6:7.1f} M values/s"
        if name != "ours":
            ratio = rounds.extra_ratio("ours", name, "cpu")
            line += f"  ours x{ratio:.2f} of its time"
            if ratio > case.target and name != "pyarrow.csv":
                missed.append(f"{kind} {form}: x{ratio:.2f} of {name}, target x{case.target:g}")
        print(f"{line}  others {rounds.others(name):.2f} cores", flush=True)
    return missed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    n_rounds, n = (1, SMOKE_ROWS) if options.smoke else (options.rounds, options.rows)
    print("\n".join(describe(os.environ, options.smoke)))
    try:
        import h5py  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"this benchmark needs the packages of the extra 'data' ({error}); pip install 'mpidml[data]'") from None
    from mpidml.data.readers import read

    missed = []
    print(f"\n{n} rows x {COLUMNS} columns, {n_rounds} rounds; medians of CPU time, ratios within a round; files lie in the page cache")
    for kind in ("counts", "measures"):
        with tempfile.TemporaryDirectory() as folder:
            for form, case in write(Path(folder), n, kind).items():
                readers: dict[str, Callable[[], Any]] = {"ours": lambda path=case.path: read(str(path)), **case.peers}
                ours = read(str(case.path))
                for name, peer in case.peers.items():
                    check_same(ours.x, peer(), name)
                rounds = interleave({name: lambda reader=reader: timed(reader) for name, reader in readers.items()}, n_rounds)
                missed += report(kind, form, case, rounds, n)
    if not options.smoke:
        print("\n".join(f"MISSED {what}" for what in missed) or "met    all targets")


if __name__ == "__main__":
    main()
