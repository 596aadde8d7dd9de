"""Hold loading to what it shares: sparse rows become the same dense ones, where there is room for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpidml
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.runtime import dataset
from mpidml.runtime.comm import CountedComm


@pytest.fixture
def source(tmp_path: Path) -> str:
    """3000 rows with 500 features, 3 of which are not 0 in each row."""
    rows = [f"{i % 3} {1 + i % 90}:{1 + i % 7} {100 + i % 99}:2 {300 + i % 201}:{1 + i % 4}" for i in range(3000)]
    (tmp_path / "t.svm").write_text("\n".join(rows) + "\n")
    return str(tmp_path / "t.svm")


def load(**values: Any) -> Any:
    comm = CountedComm()
    found = dataset.load(Job().with_values(values, "test"), comm)
    copy = found._replace(x=found.x.copy(), test_x=found.test_x.copy(), y=found.y.copy(), test_y=found.test_y.copy())
    comm.free()
    return copy


def dense(source: str) -> Any:
    x = np.zeros((3000, 500))
    for row, line in zip(x, Path(source).read_text().splitlines(), strict=True):
        for word in line.split()[1:]:
            row[int(word.split(":")[0]) - 1] = float(word.split(":")[1])
    return x


@pytest.mark.parametrize("value", ["2", "0.1"])
def test_sparse_rows_are_shared_as_dense_ones(source: str, tmp_path: Path, value: str) -> None:
    """Values that float32 holds take half the room, others do not; both are those of the file."""
    Path(source).write_text(Path(source).read_text().replace(":2 ", f":{value} "))
    np.savez(tmp_path / "t.npz", x=dense(source), y=np.arange(3000) % 3)
    sparse, whole = load(data=source, dtype="float64"), load(data=str(tmp_path / "t.npz"), dtype="float64")
    for a, b in ((sparse.x, whole.x), (sparse.test_x, whole.test_x), (sparse.y, whole.y), (sparse.test_y, whole.test_y)):
        assert a.tobytes() == b.tobytes() and len(a) in (2400, 600)


def test_sparse_rows_that_have_no_room_are_refused_with_the_figures(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = 3000 * 500 * (4 + 4)
    monkeypatch.setattr(dataset, "memory_nbytes", lambda: 2 * wanted)
    assert load(data=source).x.shape == (2400, 500)
    monkeypatch.setattr(dataset, "memory_nbytes", lambda: wanted)
    with pytest.raises(UserError, match=r"t.svm: 3000 sparse rows x 500 features take 0.012 GB as dense rows, 0.012 GB are free; give fewer"):
        load(data=source)


def test_mapped_rows_are_copied_once_and_only_those_of_the_part(tmp_path: Path) -> None:
    x, y = np.arange(5000.0).reshape(1000, 5), np.arange(1000) % 3
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    found = load(data=str(tmp_path / "x.npy"), scale="none", dtype="float64")
    rows = np.sort(np.concatenate([found.x, found.test_x])[:, 0])
    assert rows.tolist() == x[:, 0].tolist() and len(found.x) == 800
    assert (found.x[:, 0] / 5 % 3).tolist() == found.y.tolist()


def test_a_run_writes_how_its_data_were_read(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(data=source, steps=2, hidden=(3,), backend="numpy", out=str(tmp_path / "run"))
    mpidml.train(job)
    assert "data: indices begin at 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/summary.json").read_text())["task"] == "classify"
