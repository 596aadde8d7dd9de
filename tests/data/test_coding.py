"""Rows that come later are coded as the training rows were, from what the run kept alone; what does not fit is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.data import coding
from mpidml.data.coding import Known, read_later
from mpidml.data.raw import Reading
from mpidml.data.readers import read, read_pair
from tests.data import written

TRAIN = "age,town,label\n25,Bonn,no\n30,Ulm,yes\n,Ulm,yes\n41,Kiel,no\n"
LATER = "age,town,label\n50,Kiel,yes\n,Bonn,no\n60,,no\n"
IMPUTE = {"missing": "impute"}


def known_of(source: str, **how: Any) -> Known:
    """Return what a run on `source` keeps, through JSON as it is kept."""
    raw = read(source, **how)
    reading = Reading(**{name: how.get(name, getattr(Reading(), name)) for name in Reading._fields})
    task, n = ("regress", raw.y.shape[1]) if raw.y.ndim == 2 else ("classify", int(raw.y.max()) + 1)
    kept = Known(source, task, raw.x.shape[1], n, reading, raw.coding)
    found = Known.from_mapping(json.loads(json.dumps(kept.mapping())))
    assert found == kept
    return found


def file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def fault(*given: Any) -> str:
    with pytest.raises(UserError) as error:
        read_later(*given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("categories", ["onehot", "codes"])
def test_later_rows_are_those_that_read_pair_codes_with_the_training_data_at_hand(tmp_path: Path, categories: str) -> None:
    train, later = file(tmp_path, "t.csv", TRAIN), file(tmp_path, "l.csv", LATER)
    both = read_pair(train, later, categories=categories, **IMPUTE)
    x, y = read_later(later, None, known_of(train, categories=categories, **IMPUTE), True)
    assert x.tolist() == both.test_x.tolist() and y is not None and both.test_y is not None and y.tolist() == both.test_y.tolist() == [1, 0, 0]
    alone = read(later, categories=categories, **IMPUTE)  # the broken variant: later rows coded by themselves, with other categories and means
    assert alone.x.tolist() != x.tolist()


def test_rows_of_a_table_are_the_same_with_the_label_and_without_wherever_it_stands(tmp_path: Path) -> None:
    for name, text, how in (
        ("last", TRAIN, {}),
        ("first", "label,age,town\nno,25,Bonn\nyes,30,Ulm\nyes,28,Ulm\nno,41,Kiel\n", {"label": "label"}),
    ):
        known = known_of(file(tmp_path, f"{name}.csv", text), **IMPUTE, **how)
        row = {"age": "50", "town": "Kiel", "label": "never seen"}
        names = ["age", "town", "label"] if name == "last" else ["label", "age", "town"]
        with_label, bare = ("\n".join(",".join(of) for of in (some, [row[c] for c in some])) + "\n" for some in (names, [c for c in names if c != "label"]))
        found = [read_later(file(tmp_path, "l.csv", t), None, known, False) for t in (with_label, bare)]
        assert [(x.tolist(), y) for x, y in found] == [([[50.0, 0.0, 1.0, 0.0]], None)] * 2


def test_a_table_without_a_header_is_told_by_its_width(tmp_path: Path) -> None:
    known = known_of(file(tmp_path, "t.csv", "1.5,2,0\n3,4.5,1\n5,6,1\n"))
    for text in ("7,8,1\n9,1,0\n", "7,8\n9,1\n"):
        assert read_later(file(tmp_path, "l.csv", text), None, known, False)[0].tolist() == [[7, 8], [9, 1]]
    header = known_of(file(tmp_path, "h.csv", "0,1,label\n1.5,2,0\n3,4.5,1\n"))  # names that are numbers, as data frames write them
    assert read_later(file(tmp_path, "l.csv", "0,1\n7,8\n"), None, header, False)[0].tolist() == [[7, 8]]


def without_labels(form: str, folder: Path, x: Any, y: Any) -> str:
    """Write rows alone, or with labels where the format has no rows without."""
    if form == "npz":
        np.savez(folder / "l.npz", x=x)
        return str(folder / "l.npz")
    if form == "npy":
        np.save(folder / "rows.npy", x)
        return str(folder / "rows.npy")
    if form == "idx":
        return written.idx_array(folder / "l-images-idx3-ubyte", x.astype(np.uint8).reshape(len(x), 1, -1))
    if form == "csv":
        return file(folder, "l.csv", "\n".join([",".join(f"c{j}" for j in range(x.shape[1])), *(",".join(map(repr, r)) for r in x.tolist())]) + "\n")
    if form == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({f"c{j}": x[:, j] for j in range(x.shape[1])}), folder / "l.parquet")
        return str(folder / "l.parquet")
    if form == "hdf5":
        import h5py

        with h5py.File(folder / "l.h5", "w") as to:
            to["x_test"] = x
        return str(folder / "l.h5")
    return written.svmlight(folder / "l.svm", x, y)


@pytest.mark.parametrize(("form", "name"), [(form, names[0]) for form, (_, names) in written.WRITERS.items()])
def test_every_format_gives_rows_without_labels_and_refuses_to_evaluate_them(tmp_path: Path, form: str, name: str) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.integers(1, 200, (30, 4)).astype(np.float64), np.arange(30) % 3
    known = known_of(written.WRITERS[form][0](tmp_path / name.format(0), x, y))
    (tmp_path / "later").mkdir()
    later = without_labels(form, tmp_path / "later", x[::2], y[::2])
    found, none = read_later(later, None, known, False)
    assert none is None and np.array_equal(found.toarray() if form == "svmlight" else found, x[::2])
    if form != "svmlight":
        assert "its rows have no labels to compare with" in fault(later, None, known, True)
    for other, (write, names) in written.WRITERS.items():  # and whoever writes rows with labels
        (tmp_path / other).mkdir()
        rows, labels = read_later(write(tmp_path / other / names[0].format(1), x, y), None, known, True)
        rows = rows.toarray() if other == "svmlight" else rows
        assert np.array_equal(rows, x) and labels is not None and labels.tolist() == y.tolist(), other


def test_signs_stay_classes_and_indices_stay_based(tmp_path: Path) -> None:
    known = known_of(file(tmp_path, "t.svm", "-1 1:1 3:2\n+1 2:1\n"))
    x, y = read_later(file(tmp_path, "l.svm", "1 3:5\n1 1:4\n"), None, known, True)
    assert x.toarray().tolist() == [[0, 0, 5], [4, 0, 0]] and y is not None and y.tolist() == [1, 1]
    assert "line 1 has index 0, those of" in fault(file(tmp_path, "l.svm", "1 0:5\n"), None, known, True)
    assert "line 1 has index 4, the largest in" in fault(file(tmp_path, "l.svm", "1 4:5\n"), None, known, False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("age,town,label\n50,Trier,no\n", "row 0 (line 2), column 1 ('town') holds 'Trier', which"),
        ("age,town,label\n50,Kiel,perhaps\n", "label 'perhaps' in row 0 (line 2) is unknown; known: no, yes; correct it"),
        ("age,town,label\n50,Kiel,1\n", "labels are numbers, those of"),
        ("town,age,label\nKiel,50,no\n", "feature 0 is 'town', in"),
        ("age,city,label\n50,Kiel,no\n", "feature 1 is 'city', in"),
        ("age,label\n50,no\n", "its rows have no labels"),
        ("age\n50\n", "has 1 columns, the run learnt from 2 features and a label"),
        ("age,town,size,label\n50,Kiel,1,no\n", "has 4 columns, the run learnt from 2 features and a label"),
        ("age,town,label\nold,Kiel,no\n", "holds 'old', not a finite number"),
        ("age,town,label\n50,Kiel,\n", "has an empty label"),
    ],
)
def test_tables_that_do_not_fit_the_run_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    known = known_of(file(tmp_path, "t.csv", TRAIN), **IMPUTE)
    assert says in fault(file(tmp_path, "l.csv", text), None, known, True)


def test_unseen_words_may_be_ignored_where_that_means_something(tmp_path: Path) -> None:
    train, later = file(tmp_path, "t.csv", TRAIN), file(tmp_path, "l.csv", "age,town\n50,Trier\n")
    onehot, codes = (known_of(train, categories=kind, **IMPUTE) for kind in ("onehot", "codes"))
    assert read_later(later, None, onehot, False, "ignore")[0].tolist() == [[50, 0, 0, 0]]
    assert "--unseen ignore: the run learnt codes" in fault(later, None, codes, False, "ignore")
    plain = known_of(file(tmp_path, "n.csv", "a,label\n1,0\n2,1\n"))
    assert "--unseen ignore: does nothing, the run learnt from no column of words" in fault(file(tmp_path, "m.csv", "a\n1\n"), None, plain, False, "ignore")


def test_a_missing_cell_needs_a_run_that_learnt_what_stands_in_for_it(tmp_path: Path) -> None:
    known = known_of(file(tmp_path, "t.csv", TRAIN.replace("\n,", "\n28,")))
    assert "column 0 ('age') holds '', a missing value, which the run has no number for" in fault(file(tmp_path, "l.csv", LATER), None, known, True)


def test_arrays_that_do_not_fit_the_run_are_one_line(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6) % 3
    known = known_of(written.npz(tmp_path / "t.npz", x, y))
    regression = known_of(written.npz(tmp_path / "r.npz", x, y + 0.5), task="auto")
    cases = {
        "have 3 features, those of": (written.npz(tmp_path / "a.npz", np.ones((2, 3)), y[:2]), known),
        "label 7 in row 1 is unknown to the run, which has 3 classes": (written.npz(tmp_path / "b.npz", x[:2], np.array([0, 7])), known),
        "label 0.5 in row 0 is not an integer": (written.npz(tmp_path / "c.npz", x[:2], np.array([0.5, 1])), known),
        "x holds nan in row 0, column 0": (written.npz(tmp_path / "d.npz", x[:2] * np.nan, y[:2]), known),
        "have 2 targets, those of": (written.npz(tmp_path / "e.npz", x[:2], np.ones((2, 2))), regression),
        "2 rows, y has 3 labels": (written.npz(tmp_path / "f.npz", x[:2], y[:3]), known),
        "has a word": (file(tmp_path, "g.csv", "a,b,label\n1,Bonn,0\n"), known),
    }
    for says, (source, of) in cases.items():
        found = fault(source, None, of, True)
        assert says in found or (says == "has a word" and "holds 'Bonn', not a finite number" in found), found


def test_what_is_no_coding_is_refused_with_the_reason() -> None:
    kept = Known("t", "classify", 2, 3, Reading(), None, {1: 4.0}, np.array([1.0, 0.1 + 0.2, 1e-9]))
    again = Known.from_mapping(json.loads(json.dumps(kept.mapping())))
    assert again.largest == {1: 4.0} and again.class_weights is not None and again.class_weights.tobytes() == kept.class_weights.tobytes()
    assert again.classes == ["0", "1", "2"]
    with pytest.raises(ValueError, match=f"it is of format 7, this program reads {coding.FORMAT}"):
        Known.from_mapping({**kept.mapping(), "format": 7})
