"""What is read piece by piece by several is what is read at once by one: rows, labels, coding, notes, and errors."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.data import csv_rows, streamed
from mpidml.data.formats import csv, hdf5, idx, svmlight
from mpidml.data.formats import npz as npz_format
from mpidml.data.readers import read, read_pair
from tests.data.written import NAMES, WRITERS, npy, npz, parquet, text


class Paper:
    """A scratch file."""

    def __init__(self, path: Path) -> None:
        self.file, self.used = path.open("w+b", buffering=0), 0
        self.fd = self.file.fileno()

    def reserve(self, nbytes: int) -> int:
        self.used += nbytes
        return self.used - nbytes

    def write(self, rows: Any, offset: int) -> None:
        self.file.seek(offset)
        self.file.write(rows.tobytes())


class Team:
    """A crew of n in one process, one after the other; what would travel is pickled."""

    def __init__(self, path: Path, n: int) -> None:
        self.scratch, self.n = Paper(path), n

    def share(self, function: Any, items: Sequence[Any], *arguments: Any) -> list[Any]:
        found = []
        for k in range(self.n):
            own, given = pickle.loads(pickle.dumps((items[len(items) * k // self.n : len(items) * (k + 1) // self.n], arguments)))
            for argument in given:
                if hasattr(argument, "segments"):
                    argument.scratch = self.scratch
            found.append(pickle.loads(pickle.dumps(function(self.scratch, own, *given))))
        return found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut text into many pieces, and rows into portions of three."""
    for module in (csv_rows, csv, svmlight):
        monkeypatch.setattr(module, "BLOCK_NBYTES", 300)
    for module in (streamed, hdf5, idx, npz_format):
        monkeypatch.setattr(module, "rows_at_once", lambda row_nbytes: 3)


def first_half(n: int) -> np.ndarray:
    return np.arange(n // 2)


def compared(tmp_path: Path, source: str, **how: Any) -> list[str]:
    """Read a source at once, and by crews of 1 to 3; return what differs."""
    whole, found = told(lambda: read(source, **how)), []
    for n in (1, 2, 3):
        streamed = told(partial(lambda n: read(source, crew=Team(tmp_path / "scratch", n), **how), n))
        if isinstance(whole, str) or isinstance(streamed, str):
            found += [] if whole == streamed else [f"{n}: {streamed} for {whole}"]
            continue
        for name in ("x", "y", "test_x", "test_y", "notes", "coding"):
            a, b = getattr(whole, name), getattr(streamed, name)
            a = a.toarray() if hasattr(a, "toarray") else a
            same = a == b if not hasattr(a, "dtype") else np.asarray(a, np.float64).tobytes() == np.asarray(b[:], np.float64).tobytes()
            found += [] if same else [f"{n}: {name}"]
    return found


def told(reading: Any) -> Any:
    try:
        return reading()
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(("form", "name"), NAMES)
def test_a_table_read_piece_by_piece_is_the_table(tmp_path: Path, form: str, name: str) -> None:
    x = np.arange(480).reshape(60, 8) % 251
    y = np.arange(60) % 3
    write = WRITERS[form][0]
    whole = write(tmp_path / name.format(""), x, y)
    assert not compared(tmp_path, whole)
    (tmp_path / "parts").mkdir()
    for k in range(3):
        write(tmp_path / "parts" / name.format(k), x[20 * k : 20 * k + 20], y[20 * k : 20 * k + 20])
    assert not compared(tmp_path, str(tmp_path / "parts"))
    other = read(write(tmp_path / name.format("other"), x[::-1], y))
    streamed = read(whole, crew=Team(tmp_path / "scratch", 2))
    assert not np.array_equal(np.asarray(other.x.toarray() if hasattr(other.x, "toarray") else other.x), streamed.x[:])  # the check sees an order


def rows(n: int) -> list[str]:
    """Return lines of numbers, words and missing cells."""
    work, colour = ("clerk", "farmer", "?", "smith"), ("red", " blue", "")
    return [f"{i * 0.37 if i % 7 else ''},{work[i * i % 4]},{(-1) ** i / 3},{colour[i % 3]},{'yes' if i % 5 else 'no'}" for i in range(n)]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("train_rows", [None, first_half])
@pytest.mark.parametrize("categories", ["onehot", "codes"])
def test_words_and_missing_cells_are_coded_alike(tmp_path: Path, ending: str, train_rows: Any, categories: str) -> None:
    source = text(tmp_path / "t.csv", ending.join(["a,work,b,colour,label", *rows(200), "", *rows(31)]) + ending)
    how = {"missing": "impute", "train_rows": train_rows, "categories": categories}
    assert not compared(tmp_path, source, **how)
    assert not compared(tmp_path, text(tmp_path / "packed.csv.gz", Path(source).read_bytes()), **how)
    assert not compared(tmp_path, source)  # refused alike


@pytest.mark.parametrize("label", ["b,a", ("colour", "label", "b"), ("a", "gone"), ("work", "b")])
def test_several_label_columns_are_those_of_the_whole_table(tmp_path: Path, label: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    lines = [f"{i * 0.37},{('clerk', 'farmer')[i % 2] if i % 9 else ''},{(-1) ** i / 3},{('red', 'blue')[i % 2]},{'yes' if i % 5 else 'no'}" for i in range(150)]
    table = text(tmp_path / "t.csv", "\n".join(["a,work,b,colour,label", *lines]) + "\n")
    cells = list(zip(*(line.split(",") for line in lines), strict=True))
    columns = {name: [float(v) if name in "ab" else v for v in of] for name, of in zip(("a", "work", "b", "colour", "label"), cells, strict=True)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet", row_group_size=40)
    task = "auto" if label == "b,a" else "heads"
    for source in (table, str(tmp_path / "t.parquet")):
        assert not compared(tmp_path, source, label=label, task=task, missing="impute", train_rows=first_half)
    found = told(lambda: read(table, label=label, task=task, missing="impute", crew=Team(tmp_path / "scratch", 2)))
    if isinstance(found, str):
        assert ("there is no column 'gone'" in found) if "gone" in label else "has an empty label" in found or "no label but" in found
    else:
        names = tuple(label.split(",")) if isinstance(label, str) else label
        assert found.coding.labels == read(str(tmp_path / "t.parquet"), label=label, task=task, missing="impute").coding.labels == names
        assert found.y.shape == (150, len(found.coding.at)) and found.x.shape[1] == {2: 6, 3: 3}[len(found.coding.at)]


def test_a_quote_may_hold_a_line_end(tmp_path: Path) -> None:
    lines = [f'{i},"w{i % 3}\nx",{i % 2}' if i > 40 else f"{i},w{i % 3},{i % 2}" for i in range(90)]
    assert not compared(tmp_path, text(tmp_path / "t.csv", "n,w,label\n" + "\n".join(lines)))
    assert not compared(tmp_path, text(tmp_path / "u.csv", '"n",w,label\n' + "\n".join(lines) + "\n"))
    assert not compared(tmp_path, text(tmp_path / "v.csv", b"\xef\xbb\xbfn,w,label\n" + "\n".join(lines[:40]).encode()))


def test_test_data_are_coded_as_the_training_data(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    train = text(tmp_path / "train.csv", "\n".join(["a,work,b,colour,label", *rows(120)]) + "\n")
    cells = [line.split(",") for line in rows(50)]
    names = ["a", "work", "b", "colour", "label"]
    columns = {name: [row[j] for row in cells] for j, name in enumerate(names)}
    columns |= {name: [float(v) if v else None for v in columns[name]] for name in ("a", "b")}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "test.parquet", row_group_size=11)
    for other in (str(tmp_path / "test.parquet"), text(tmp_path / "odd.csv", "a,work,b,colour,label\n1,baker,2,red,yes\n")):
        whole = told(lambda other=other: read_pair(train, other, missing="impute"))
        streamed = told(lambda other=other: read_pair(train, other, missing="impute", crew=Team(tmp_path / "scratch", 3)))
        if isinstance(whole, str):
            assert whole == streamed and "baker" in whole
        else:
            assert whole.test_x.tobytes() == streamed.test_x[:].tobytes() and (whole.test_y == streamed.test_y).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("short.csv", "a,b,label\n" + "1,2,0\n" * 200 + "1,2\n"),
        ("inf.csv", "a,b,label\n" + "1,2,0\n" * 200 + "1,inf,0\n"),
        ("word.csv", "a,b,label\n" + "1,2,0\n" * 200 + "1,two,0\n"),
        ("label.csv", "a,b,label\n" + "1,2,0\n" * 200 + "1,2,\n"),
        ("latin.csv", b"a,b,label\n" + b"1,2,0\n" * 200 + b"1,\xff,0\n"),
        ("negative.csv", "a,b,label\n" + "1,2,0\n" * 200 + "1,2,-1\n"),
        ("pair.svm", "1 1:2\n" * 200 + "0 1:2 1:3\n"),
        ("empty.svm", "1\n0\n"),
        ("none.svm", "# nothing\n"),
    ],
)
def test_what_is_wrong_is_told_in_the_same_words(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert not compared(tmp_path, text(tmp_path / name, content))


def test_a_value_that_is_not_finite_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    x, y = np.ones((50, 4)), np.arange(50) % 2
    x[31, 2] = np.nan
    (tmp_path / "d").mkdir()
    assert not compared(tmp_path, npy(tmp_path / "d" / "x.npy", x, y))
    np.savez_compressed(tmp_path / "c.npz", x=x, y=y)
    assert not compared(tmp_path, str(tmp_path / "c.npz"))
    data = bytearray(Path(npz(tmp_path / "s.npz", np.ones((50, 4)), y)).read_bytes())
    data[300] ^= 1
    (tmp_path / "s.npz").write_bytes(data)
    assert "Bad CRC" in told(lambda: read(str(tmp_path / "s.npz"), crew=Team(tmp_path / "scratch", 2)))
    packed = gzip.compress(b"a,b,label\n" + b"1,2,0\n" * 500)
    (tmp_path / "t.csv.gz").write_bytes(packed[:-20])
    assert "cannot be decoded" in told(lambda: read(str(tmp_path / "t.csv.gz"), crew=Team(tmp_path / "scratch", 2)))


def test_arrays_that_lie_column_by_column_or_in_chunks_are_read_too(tmp_path: Path) -> None:
    import h5py

    x, y = np.arange(1200.0).reshape(150, 2, 4), np.arange(150) % 2
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "x.npy", np.asfortranarray(x))
    np.save(tmp_path / "f" / "y.npy", y)
    np.savez(tmp_path / "f.npz", x=np.asfortranarray(x), y=y)
    np.savez_compressed(tmp_path / "p.npz", x=x, y=y, x_test=x[:9], y_test=y[:9])
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(7, 2, 4), compression="gzip")
        file.create_dataset("y", data=y)
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file.create_dataset("x", shape=(10, 3), dtype="f4")  # nothing is written of it
        file["y"] = y[:10]
    for name in ("f/x.npy", "f.npz", "p.npz", "c.h5", "e.h5"):
        assert not compared(tmp_path, str(tmp_path / name)), name
    np.savez_compressed(tmp_path / "q.npz", x=np.asfortranarray(x), y=y)
    assert "packed column by column" in told(lambda: read(str(tmp_path / "q.npz"), crew=Team(tmp_path / "scratch", 1)))


def test_what_lies_on_the_disk_as_it_is_takes_no_scratch_file(tmp_path: Path) -> None:
    x, y = np.arange(80.0).reshape(20, 4), np.arange(20) % 2
    (tmp_path / "x").mkdir()
    for form, name in NAMES:
        team = Team(tmp_path / "scratch", 2)
        read(WRITERS[form][0](tmp_path / "x" / name.format(""), x, y), crew=team)
        assert (team.scratch.used == 0) == (form in ("npy", "npz", "hdf5") or name.endswith("ubyte")), name


def test_a_row_group_of_parquet_is_a_piece(tmp_path: Path) -> None:
    from mpidml.data.formats.parquet import Parquet

    file = Parquet().stream(Path(parquet(tmp_path / "t.parquet", np.ones((31, 2)), np.zeros(31, int))))
    assert [piece.n for piece in file.pieces()] == [10, 10, 10, 1]
    assert [len(table.cells) for piece in file.pieces()[1:3] for table in file.parts(piece)] == [10, 10]
