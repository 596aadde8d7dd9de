"""Several label columns of a table are the targets of one regression, in the order in which they are named; what cannot be is one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.readers import read, read_pair
from mpidml.evaluate import evaluate
from mpidml.predict import predict
from mpidml.strategies.base import train

NAMES = ["size", "a", "town", "price, net", "b", "kind"]


def table(path: Path, n: int = 90, labelled: bool = True, seed: int = 0) -> str:
    """Write a mixed table: words, numbers, and two amounts that follow from them, the first in hundreds; the last is a class."""
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((2, n))
    towns = np.array(["Bonn", "Ulm"])[draw.integers(0, 2, n)]
    size, price = 100 * (a + b) + 50, a - b + (towns == "Ulm")
    columns = [size, a, towns, price, b, np.array(["low", "high"])[(a > 0).astype(int)]]
    kept = [j for j, name in enumerate(NAMES) if labelled or name not in ("size", "price, net")]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({NAMES[j]: columns[j] for j in kept}), path)
        return str(path)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([NAMES[j] for j in kept])
        rows.writerows(zip(*(columns[j].tolist() for j in kept), strict=True))
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_targets_come_in_the_order_in_which_their_columns_are_named(tmp_path: Path, ending: str) -> None:
    source = table(tmp_path / f"t.{ending}")
    both = read(source, label=("price, net", "size"), task="auto")
    one, other = (read(source, label=name, task="regress") for name in ("price, net", "size"))
    assert both.y.shape == (90, 2) and both.y.dtype == np.float64
    assert np.array_equal(both.y, np.concatenate([one.y, other.y], axis=1))
    assert not np.array_equal(both.y[:, 0], read(source, label=("size", "price, net"), task="auto").y[:, 0]), "the order of the file would be another"
    assert both.x.shape == (90, 2 + 2 + 2) and np.array_equal(both.x[:, 0], read(source, label="kind").x[:, 1])


def test_names_are_parted_at_commas_unless_they_are_one_name(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv")
    assert read(source, label="price, net", task="regress").y.shape == (90, 1)
    assert np.array_equal(read(source, label="size, b", task="auto").y, read(source, label=("size", "b"), task="auto").y)


def test_whole_numbers_in_several_columns_are_amounts_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,p,q\n" + "\n".join(f"{i * 0.5},{i},{i % 3}" for i in range(12)))
    assert read(str(tmp_path / "t.csv"), label="p,q", task="auto").y.tolist() == [[i, i % 3] for i in range(12)]


@pytest.mark.parametrize(
    "label, task, message",
    [
        ("size,prise", "auto", "there is no column 'prise'; known: "),
        ("size,size", "auto", "column 'size' is named twice as a label"),
        ("size,kind", "auto", "several columns are the amounts of one regression, and kind holds words ('high')"),
        ("size,b", "classify", "--task classify: 2 label columns are the amounts of one regression"),
        (tuple(NAMES), "auto", "all of its 6 columns are named as labels"),
    ],
)
def test_columns_that_cannot_be_targets_are_one_line(tmp_path: Path, label: Any, task: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(table(tmp_path / "t.csv"), label=label, task=task)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_row_without_one_of_its_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,p,q\n1,2,3\n2,3,\n")
    with pytest.raises(UserError, match=r"row 1 \(line 3\) has an empty label in column 2 \('q'\); give each row all its labels, or leave it out"):
        read(str(tmp_path / "t.csv"), label="p,q", task="auto")


def test_test_rows_have_the_same_targets(tmp_path: Path) -> None:
    train, test = table(tmp_path / "t.csv"), table(tmp_path / "u.csv", 30, seed=1)
    raw = read_pair(train, test, label="size,b", task="auto")
    assert raw.test_y is not None and np.array_equal(raw.test_y, read(test, label="size,b", task="auto").y)
    with pytest.raises(UserError, match="there is no column 'size'"):
        read_pair(train, table(tmp_path / "v.csv", labelled=False), label="size,b", task="auto")


def test_their_names_stand_in_predictions_and_measures_of_each_add_up(tmp_path: Path) -> None:
    job = Job(data=table(tmp_path / "t.csv"), label="b,size", hidden=(8,), epochs=3, backend="numpy", dtype="float64", out=str(tmp_path / "run"))
    summary = train(job, quiet=True)
    found = evaluate(job.out, quiet=True, plot=True)
    assert [of["target"] for of in found["each"]] == ["b", "size"]
    assert np.mean([of["rmse"] ** 2 for of in found["each"]]) ** 0.5 == pytest.approx(found["rmse"]) == pytest.approx(summary["test_rmse"])
    kept = json.loads((tmp_path / "run" / "coding.json").read_text())["table"]
    assert (kept["labels"], kept["at"]) == (["b", "size"], [4, 0])
    bare = tmp_path / "bare.csv"
    lines = list(csv.reader(Path(table(tmp_path / "new.csv", 40, seed=2)).read_text().splitlines()))
    with bare.open("w", newline="") as file:
        csv.writer(file).writerows([[row[j] for j in (1, 2, 3, 5)] for row in lines])
    written = []
    for name in ("new.csv", "bare.csv"):
        predict(job.out, str(tmp_path / name), str(tmp_path / f"of_{name}"), quiet=True)
        written.append((tmp_path / f"of_{name}").read_bytes())
    assert written[0] == written[1] and written[0].startswith(b"b,size\n"), "labels are not looked at"
    true = np.array([[float(row[4]), float(row[0])] for row in lines[1:]])
    told = np.loadtxt(tmp_path / "of_new.csv", delimiter=",", skiprows=1)
    later = evaluate(job.out, data=str(tmp_path / "new.csv"), quiet=True, write=False)
    assert [of["rmse"] for of in later["each"]] == pytest.approx(np.sqrt(np.square(told - true).mean(axis=0)), rel=1e-9)
