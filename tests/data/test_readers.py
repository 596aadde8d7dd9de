"""Hold the readers to two promises: what they return can be trained on, and what they refuse is named in one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.data.readers import VIEWS, RawData, as_rows, check, check_labels, read, read_pair

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
LABELS = np.array([0, 1, 2, 1])


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def text(path: Path, content: str) -> str:
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return str(path)


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("view", "n_features", "dtype"),
    [("pix", 240, "u1"), ("fac", 216, "u2"), ("fou", 76, "f4"), ("kar", 64, "f4"), ("zer", 47, "f4"), ("mor", 6, "f4")],
)
def test_the_shipped_digits_are_200_of_each_class_in_six_views(view: str, n_features: int, dtype: str) -> None:
    raw = read("digits", view)
    assert raw.x.shape == (2000, n_features) and raw.x.dtype == dtype
    assert raw.y.dtype == np.int64 and np.bincount(raw.y).tolist() == [200] * 10
    assert raw.test_x is None and raw.test_y is None
    assert view in VIEWS


def test_the_attribution_of_the_digits_lies_beside_them() -> None:
    import mpidml.data.readers as module

    notice = (Path(module.__file__).parent / "digits" / "NOTICE").read_text()
    assert "Duin" in notice and "CC BY 4.0" in notice and "https://creativecommons.org/licenses/by/4.0/" in notice and "Changes:" in notice


def test_images_become_rows_and_keep_their_dtype(tmp_path: Path) -> None:
    images = np.arange(4 * 2 * 3 * 1, dtype=np.uint8).reshape(4, 2, 3, 1)
    raw = read(npz(tmp_path / "a.npz", x_train=images, y_train=LABELS.astype(np.uint8), x_test=images[:2], y_test=np.array([[0], [1]])))
    assert raw.x.dtype == np.uint8 and raw.x.tolist() == images.reshape(4, 6).tolist()
    assert raw.test_x is not None and raw.test_y is not None
    assert raw.test_x.shape == (2, 6) and raw.test_y.tolist() == [0, 1] and raw.test_y.dtype == np.int64


def test_an_npz_without_a_test_part_and_with_other_arrays_is_read(tmp_path: Path) -> None:
    raw = read(npz(tmp_path / "a.npz", x=ROWS, y=LABELS.astype(float), notes=np.array(["any"])))
    assert raw.x.tolist() == ROWS.tolist() and raw.y.tolist() == [0, 1, 2, 1] and raw.test_x is None


def test_as_rows_casts_and_flattens_and_copies_nothing_that_fits() -> None:
    assert np.shares_memory(as_rows(ROWS, np.float32), ROWS)
    rows = as_rows(np.asfortranarray(ROWS).reshape(4, 3, 1), np.float64)
    assert rows.dtype == np.float64 and rows.shape == (4, 3) and rows.flags.c_contiguous and rows.tolist() == ROWS.tolist()


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("header", ["", "width,height,kind\n", "\ufeffwidth,height,kind\n", "0,1,kind\n"])
def test_a_table_is_read_with_or_without_a_header(tmp_path: Path, name: str, header: str) -> None:
    raw = read(text(tmp_path / name, header + "1,2.5,0\n\n3,-4e1,1\r\n"))
    assert raw.x.tolist() == [[1, 2.5], [3, -40]] and raw.y.tolist() == [0, 1] and raw.y.dtype == np.int64


def test_words_as_labels_are_coded_in_sorted_order(tmp_path: Path) -> None:
    raw = read(text(tmp_path / "t.csv", "a,b,kind\n1,2,pear\n3,4,apple\n5,6,pear\n"))
    assert raw.y.tolist() == [1, 0, 1]
    assert read(text(tmp_path / "u.csv", "1,2,pear\n3,4,apple\n")).y.tolist() == [1, 0]


def test_the_label_may_be_any_named_column(tmp_path: Path) -> None:
    path = text(tmp_path / "t.csv", "a,kind,b\n1,1,2\n3,0,4\n")
    raw = read(path, label="kind")
    assert raw.x.tolist() == [[1, 2], [3, 4]] and raw.y.tolist() == [1, 0]
    assert "no column 'kinds'" in refusal(lambda: read(path, label="kinds")) and "did you mean 'kind'" in refusal(lambda: read(path, label="kinds"))


def test_a_pair_of_tables_shares_one_coding_of_words(tmp_path: Path) -> None:
    train = text(tmp_path / "train.csv", "1,2,pear\n3,4,apple\n5,6,fig\n")
    test = text(tmp_path / "test.csv", "1,2,pear\n3,4,fig\n")
    raw = read_pair(train, test)
    assert raw.test_y is not None and raw.y.tolist() == [2, 0, 1] and raw.test_y.tolist() == [2, 1]
    assert read(test).y.tolist() == [1, 0], "alone, the test table would have been coded otherwise"
    assert "'plum' in row 0 (line 1) is unknown" in refusal(lambda: read_pair(train, text(tmp_path / "u.csv", "1,2,plum\n")))
    assert "label both alike" in refusal(lambda: read_pair(train, npz(tmp_path / "a.npz", x=ROWS[:, :2], y=LABELS)))
    assert "label both alike" in refusal(lambda: read_pair(npz(tmp_path / "a.npz", x=ROWS[:, :2], y=LABELS), train))


def test_a_pair_prefers_the_test_part_of_the_second(tmp_path: Path) -> None:
    both = npz(tmp_path / "b.npz", x_train=ROWS, y_train=LABELS, x_test=ROWS[:1] + 7, y_test=LABELS[:1])
    raw = read_pair(npz(tmp_path / "a.npz", x=ROWS, y=LABELS), both)
    assert raw.test_x is not None and raw.test_x.tolist() == (ROWS[:1] + 7).tolist()
    assert "3 features, test rows have 240" in refusal(lambda: read_pair(str(tmp_path / "a.npz"), "digits"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1,2,0\n1,2\n", "row 1 (line 2) has 2 cells, the first line has 3"),
        ('1,2,0\n1,"2,0\n3,4,1\n', "row 1 (lines 2 to 3) has 2 cells, the first line has 3; a quote is opened there"),
        ("a,b,c\n1,2,0\n1,two,1\n", "row 1 (line 3), column 1 ('b') holds 'two'"),
        ("1,x,0\n1,2,1\n", "row 0 (line 1), column 1 holds 'x'"),
        ("1,2,\n", "row 0 (line 1) has an empty label"),
        ("1,,0\n1,2,0\n", "row 0 (line 1), column 1 holds ''"),
        ("a,b,c\n", "a header but no rows"),
        ("\n\n", "holds no rows"),
        ("1\n2\n", "1 column"),
        ("1;2;0\n", "separate columns by commas"),
        ("1,nan,0\n1,2,1\n", "row 0 (line 1), column 1 holds 'nan', not a finite number"),
        ("1,2,0\n1,-inf,1\n", "row 1 (line 2), column 1 holds '-inf', not a finite number"),
        ("1,2,0.5\n1,2,1\n", "label 0.5 in row 0 is not an integer"),
        ("1,2,-1\n1,2,1\n", "label -1.0 in row 0 is negative"),
    ],
)
def test_a_bad_table_is_refused_by_row_and_column(tmp_path: Path, content: str, expected: str) -> None:
    path = text(tmp_path / "t.csv", content)
    message = refusal(lambda: read(path))
    assert expected in message and path in message


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": ROWS, "labels": LABELS}, "missing array(s) y; found: labels, x"),
        ({"x_train": ROWS, "y_train": LABELS, "x_test": ROWS}, "missing array(s) y_test"),
        ({"images": ROWS}, "missing array(s) x_train, y_train; found: images"),
        ({"x": ROWS, "y": LABELS[:3]}, "x has 4 rows, y has 3 labels"),
        ({"x": ROWS, "y": np.array(["a"] * 4)}, "not integers"),
        ({"x": ROWS, "y": LABELS * 0.3}, "label 0.3 in row 1 is not an integer"),
        ({"x": ROWS, "y": LABELS * np.nan}, "label nan in row 0 is not an integer"),
        ({"x": ROWS, "y": LABELS + np.inf}, "label inf in row 0 is too large"),
        ({"x": ROWS, "y": LABELS - 1}, "label -1 in row 0 is negative"),
        ({"x": ROWS, "y": LABELS * 2}, "label 4 in row 2"),
        ({"x": ROWS, "y": LABELS * 2.0**62}, "too large"),
        ({"x": ROWS, "y": np.eye(4)}, "labels have shape (4, 4)"),
        ({"x": ROWS[:0], "y": LABELS[:0]}, "x is empty"),
        ({"x": ROWS[:, :0], "y": LABELS}, "x is empty"),
        ({"x": ROWS[:, 0], "y": LABELS}, "x has shape (4,)"),
        ({"x": np.array([["a"]] * 4), "y": LABELS}, "not numbers"),
        ({"x": np.where(ROWS == 7, np.nan, ROWS), "y": LABELS}, "x holds nan in row 2, column 1"),
        ({"x_train": ROWS, "y_train": LABELS, "x_test": np.where(ROWS == 5, np.inf, ROWS), "y_test": LABELS}, "x_test holds inf in row 1, column 2"),
        ({"x_train": ROWS, "y_train": LABELS, "x_test": ROWS[:, :2], "y_test": LABELS}, "train rows have 3 features, test rows have 2"),
        ({"x_train": ROWS, "y_train": LABELS, "x_test": ROWS, "y_test": LABELS + 1}, "y_test: label 3 in row 2 is out of range 0..2 (3 classes)"),
    ],
)
def test_bad_arrays_are_refused_with_both_values(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    path = npz(tmp_path / "a.npz", **arrays)
    message = refusal(lambda: read(path))
    assert expected in message and path in message


def test_nan_beyond_the_first_slice_of_rows_is_found() -> None:
    x = np.zeros((10000, 2))
    x[9999, 1] = np.nan
    assert "row 9999, column 1" in refusal(lambda: check(RawData("made", x, np.zeros(10000, np.int64), None, None)))


def test_labels_are_held_to_the_number_of_classes() -> None:
    check_labels(np.array([0, 9]), 10, "test")
    assert "test: label 10 in row 1 is out of range 0..9" in refusal(lambda: check_labels(np.array([0, 10]), 10, "test"))


@pytest.mark.parametrize("name", ["a.npz", "t.csv.gz"])
def test_a_truncated_or_corrupt_file_is_refused_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez_compressed(path, x=ROWS, y=LABELS)
    else:
        text(path, "1,2,0\n" * 50)
    whole = path.read_bytes()
    for cut in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut])
        assert "cannot be decoded" in refusal(lambda: read(str(path)))
    path.write_bytes(b"this was never one")
    assert "cannot be decoded" in refusal(lambda: read(str(path)))


def test_pickled_and_bare_arrays_are_refused(tmp_path: Path) -> None:
    assert "cannot be decoded" in refusal(lambda: read(npz(tmp_path / "a.npz", x=np.array([{}] * 4), y=LABELS)))
    with (tmp_path / "b.npz").open("wb") as file:
        np.save(file, ROWS)
    assert "one bare array" in refusal(lambda: read(str(tmp_path / "b.npz")))
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00,1\n")
    assert "cannot be decoded" in refusal(lambda: read(str(tmp_path / "c.csv")))


def test_a_source_that_is_no_data_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.npz").touch()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.npz").mkdir()
    assert "there is no such file" in refusal(lambda: read(str(tmp_path / "none.npz")))
    assert "0 bytes" in refusal(lambda: read(str(tmp_path / "empty.npz"))) and "0 bytes" in refusal(lambda: read(str(tmp_path / "empty.csv")))
    unknown = refusal(lambda: read(str(tmp_path / "notes.txt")))
    assert "known formats: " in unknown and all(ending in unknown for ending in (".npz", ".csv.gz", ".parquet", ".svm", "idx3-ubyte"))
    assert "is not a file" in refusal(lambda: read(str(tmp_path / "folder.npz")))
    assert "did you mean 'digits'" in refusal(lambda: read("digit"))


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=ROWS, y=LABELS)
    assert "only 'digits' has views" in refusal(lambda: read(path, "fou"))
    assert "only tables" in refusal(lambda: read(path, label="kind"))
    assert "did you mean 'pix'" in refusal(lambda: read("digits", "pixx"))


def test_columns_in_another_order_are_refused(tmp_path):
    train, test, same = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"
    train.write_text("p,q,y\n1,2,0\n3,4,1\n")
    test.write_text("q,p,y\n2,1,0\n")
    same.write_text("p,q,y\n1,2,0\n")
    with pytest.raises(UserError, match=r"b.csv: feature 0 is 'q', in .*a.csv it is 'p'"):
        read_pair(str(train), str(test))
    assert read_pair(str(train), str(same)).test_x.tolist() == [[1.0, 2.0]]


def test_a_fault_in_the_test_data_names_their_file(tmp_path):
    np.savez(tmp_path / "ok.npz", x=np.eye(3), y=np.arange(3))
    np.savez(tmp_path / "bad.npz", x=np.array([[1.0, np.nan, 0.0]]), y=np.array([0]))
    with pytest.raises(UserError, match=r"bad.npz: x holds nan in row 0, column 1"):
        read_pair(str(tmp_path / "ok.npz"), str(tmp_path / "bad.npz"))
