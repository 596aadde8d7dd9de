"""Hold every format to one line for what cannot be read: the file, the row or line, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.data.formats.svmlight import Svmlight
from mpidml.data.readers import read, read_pair
from tests.data.written import NAMES, WRITERS, csv, hdf5, idx, idx_array, npy, text

X, Y = np.arange(24).reshape(8, 3) % 7, np.arange(8) % 3
PACKED = [(form, name) for form, name in NAMES if name not in ("t{}.csv", "t{}.svm")]
"""What is no plain text: a cut of plain text may be a shorter number."""


def refusal(source: str, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(source, **how)
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]+: [^\n]+; [^\n]+", message), message
    return message


@pytest.mark.parametrize(("form", "name"), PACKED)
def test_a_file_cut_anywhere_is_refused_by_its_name(tmp_path: Path, form: str, name: str) -> None:
    path = Path(WRITERS[form][0](tmp_path / name.format(""), X, Y))
    whole = path.read_bytes()
    assert read(str(path)).y.tolist() == Y.tolist()
    for cut in range(1, len(whole), max(1, len(whole) // 25)):
        path.write_bytes(whole[:cut])
        assert path.name in refusal(str(path))


@pytest.mark.parametrize(("form", "name"), NAMES)
def test_an_empty_or_a_foreign_file_is_refused_by_its_name(tmp_path: Path, form: str, name: str) -> None:
    path = Path(WRITERS[form][0](tmp_path / name.format(""), X, Y))
    path.write_bytes(b"")
    assert f"{path}: the file is empty (0 bytes); give a data file" == refusal(str(path))
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe is a picture\n" * 9)
    assert str(path) in refusal(str(path))
    path.unlink()
    assert f"{path}: there is no such file" in refusal(str(path))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path: Path, name: str) -> None:
    lines = [b"a,b,y", "1,caf\u00e9,0".encode(), "2,caf\u00e9,1".encode("latin-1"), b"3,tea,1"]
    path = text(tmp_path / name, b"\n".join(lines))
    assert f"{path}: line 3 cannot be decoded as UTF-8 (byte 0xe9 after 5 others); save the file as UTF-8" == refusal(path)


@pytest.mark.parametrize("name", ["t.svm", "t.svm.gz"])
def test_svmlight_may_begin_with_a_byte_order_mark_and_utf16_is_named(tmp_path: Path, name: str) -> None:
    lines = "# note\n1 1:2\n0 2:3\n"
    path = text(tmp_path / name, lines.encode("utf-8-sig"))
    assert read(path).x.toarray().tolist() == [[2, 0], [0, 3]]
    assert sum(piece.n for piece in Svmlight().stream(Path(path)).pieces()) == 2
    assert f"{path}: line 1 holds a zero byte, as UTF-16 does; save the file as UTF-8" == refusal(text(Path(path), lines[7:].encode("utf-16-le")))


def parquet(path: Path, **columns: Any) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def test_a_table_of_columns_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    good = {"p": [1.0, 2.0, 3.0], "q": ["a", "b", "a"], "y": [0, 1, 0]}
    path = tmp_path / "t.parquet"
    assert read(parquet(path, **good)).x.tolist() == [[1, 1, 0], [2, 0, 1], [3, 1, 0]]
    assert "there is no column 'yy'; known: p, q, y; did you mean 'y'?" in refusal(parquet(path, **good), label="yy")
    assert "column 1 ('q') is timestamp" in refusal(parquet(path, **good | {"q": np.array([0, 1, 2], "M8[s]")}))
    assert "column 1 ('q') is list<" in refusal(parquet(path, **good | {"q": [[1], [2], [3]]}))
    assert "row 1, column 0 ('p') holds 'inf', not a finite number" in refusal(parquet(path, **good | {"p": [1.0, np.inf, 3.0]}))
    assert "row 1, column 0 ('p') holds ''" in refusal(parquet(path, **good | {"p": [1, None, 3]}))
    assert "row 2 has an empty label in column 2" in refusal(parquet(path, **good | {"y": [1, 0, None]}))
    assert "has 1 column, at least 2 are needed" in refusal(parquet(path, y=[0, 1]))
    assert "columns but no rows" in refusal(parquet(path, p=np.empty(0), y=np.empty(0, int)))
    with pytest.raises(UserError, match=r"u.parquet: feature 1 is 'r', in .*t.parquet it is 'q'"):
        read_pair(parquet(path, **good), parquet(tmp_path / "u.parquet", p=[1.0], r=["a"], y=[0]))


def test_a_parquet_page_that_is_not_its_checksum_s_is_refused(tmp_path: Path) -> None:
    """Where the writer left one: without, bytes that have changed are other numbers."""
    import pyarrow
    import pyarrow.parquet

    path, values = tmp_path / "t.parquet", np.arange(100.0)
    table = pyarrow.table({"p": values, "y": np.arange(100) % 2})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    assert read(str(path)).x[:, 0].tolist() == values.tolist()
    whole = path.read_bytes()
    at = whole.index(values[40:50].tobytes())
    path.write_bytes(whole[:at] + values[50:60].tobytes() + whole[at + 80 :])
    assert f"{path}: the file cannot be decoded" in refusal(str(path))


def test_the_index_of_a_data_frame_is_neither_label_nor_feature(tmp_path: Path) -> None:
    frame = {"p": [1.0, 2.0, 3.0], "y": [0, 1, 0], "__index_level_0__": [0, 1, 2]}
    for label in (None, "y"):
        assert "column 2 ('__index_level_0__') is the index of a pandas frame" in refusal(parquet(tmp_path / "t.parquet", **frame), label=label)
        assert "column 0 has no name in the header" in refusal(text(tmp_path / "t.csv", ",p,y\n0,1.5,0\n1,2.5,1\n2,0.5,0\n"), label=label)
    assert "column 2 has no name in the header" in refusal(text(tmp_path / "t.csv", "p,y,\n1.5,0,\n2.5,1,\n"))


def test_hdf5_without_the_arrays_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        file["images"], file["group/x"] = X, X
    assert "missing array(s) x_train, y_train; found: images; give x, y" in refusal(str(path))
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = X, [b"a"] * 8
    assert "labels are object, not integers" in refusal(str(path)) or "labels are |S1, not integers" in refusal(str(path))
    assert "x has 8 rows, y has 7 labels" in refusal(hdf5(path, X, Y[:7]))


def test_idx_headers_and_counts_must_fit(tmp_path: Path) -> None:
    source = idx(tmp_path / "train-images-idx3-ubyte", X, Y)
    whole = Path(source).read_bytes()
    Path(source).write_bytes(b"\0\0\x07\x03" + whole[4:])
    assert "begins with the bytes 00 00 07 03, which are no IDX header" in refusal(source)
    Path(source).write_bytes(whole[:-1])
    assert "its header says [8, 1, 3] values of 1 byte(s), it holds 23 bytes of them, not 24; write it again" in refusal(source)
    Path(source).write_bytes(whole + b"\0")
    assert "it holds 25 bytes of them, not 24" in refusal(source)
    Path(source).write_bytes(whole)
    labels = tmp_path / "train-labels-idx1-ubyte"
    idx_array(labels, Y[:7].astype(np.uint8))
    assert "holds 8 rows, train-labels-idx1-ubyte has 7 labels" in refusal(source)
    idx_array(labels, X.astype(np.uint8))
    assert "train-labels-idx1-ubyte: holds 2 dimensions, labels have 1" in refusal(source)
    labels.unlink()
    assert "there is no file of its labels beside it (train-labels-idx1-ubyte); give it by --labels" in refusal(source)
    assert "nowhere.idx: there is no such file" in refusal(source, labels=str(tmp_path / "nowhere.idx"))
    idx_array(tmp_path / "flat.idx", Y.astype(np.uint8))
    assert "holds 1 dimension, as labels do; give the file of the images" in refusal(str(tmp_path / "flat.idx"), labels=source)


def test_npy_of_other_kinds_and_without_labels_is_refused(tmp_path: Path) -> None:
    source = npy(tmp_path / "x.npy", X, Y)
    (tmp_path / "y.npy").unlink()
    assert "there is no " in refusal(source) and "give the file of the labels by --labels" in refusal(source)
    assert "Python objects" in refusal(npy(tmp_path / "x.npy", np.array([[{}]] * 8), Y))
    assert "x is complex128, not numbers" in refusal(npy(tmp_path / "x.npy", X * 1j, Y))
    assert "the array has shape (8,); give rows" in refusal(npy(tmp_path / "x.npy", X[:, 0], Y))
    assert "x has 8 rows, y has 7 labels" in refusal(npy(tmp_path / "x.npy", X, Y[:7]))


@pytest.mark.parametrize("in_place", [False, True])
def test_labels_and_test_rows_that_are_damaged_are_named_and_not_the_rows_beside_them(tmp_path: Path, in_place: bool) -> None:
    crew = OpenCrew() if in_place else None
    source = npy(tmp_path / "x.npy", X, Y)
    labels = tmp_path / "y.npy"
    labels.write_bytes(labels.read_bytes()[:-9])
    assert f"{labels}: the file cannot be decoded (" in refusal(source, crew=crew)
    np.savez(labels.with_suffix(".npz"), a=Y, b=Y)
    assert f"{labels.with_suffix('.npz')}: holds named arrays (a, b), not one of labels" in refusal(source, labels=str(labels.with_suffix(".npz")), crew=crew)
    for kind in ("train", "t10k"):
        source = idx(tmp_path / f"{kind}-images-idx3-ubyte.gz", X, Y)
    for name in ("train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-6])
        assert f"{path}: the file cannot be decoded (" in refusal(str(tmp_path / "train-images-idx3-ubyte.gz"), crew=crew)
        path.write_bytes(whole)


class OpenCrew:
    """A crew of one, without a scratch file: rows stay where they are, or are read whole."""

    scratch = None

    def share(self, function: Any, items: Any, *arguments: Any) -> list[Any]:
        return [function(None, items, *arguments)]


def test_the_check_of_refusals_sees_a_line_without_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpidml.data.formats.csv import Csv

    def vague(*_: Any) -> None:
        raise UserError("t.csv: is wrong")

    monkeypatch.setattr(Csv, "read", vague)
    with pytest.raises(AssertionError):
        refusal(csv(tmp_path / "t.csv", X, Y))


@pytest.mark.parametrize("form", ["npz", "hdf5", "npy", "svmlight", "csv", "parquet"])
def test_labels_that_are_no_classes_are_refused_in_every_format(tmp_path: Path, form: str) -> None:
    write: Callable[..., str] = WRITERS[form][0]
    name = WRITERS[form][1][0].format("")
    for y, expected in (
        (Y + 0.5, "label 0.5 in row 0 is not an integer"),
        (Y - 2.0, "label -2.0 in row 0 is negative"),
        (Y * 40, "label 80 in row 2"),
    ):
        assert expected in refusal(write(tmp_path / name, X.astype(float), y))
