"""Hold a run on arrays to the run on the file that holds them: the same bits, on any number of ranks; what says how files are read is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.readers import read
from mpidml.nn.models import build
from mpidml.runtime.comm import CountedComm
from mpidml.strategies.base import train

pytestmark = pytest.mark.shows_from(3)

SMALL = Job(hidden=(12,), steps=9, batch=50, dtype="float64", backend="numpy", seed=3, lr=0.02, deterministic=True)
DIGITS = read("digits", "kar")


def trained(comm: Any, job: Job, data: Any = None) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    kept["summary"] = train(job, comm, quiet=True, write=False, keep=kept, data=data)
    return kept


@pytest.mark.mpi
@pytest.mark.parametrize("task", ["classify", "regress"])
@pytest.mark.parametrize("has_test", [True, False])
def test_arrays_teach_what_their_file_does_and_only_those_of_each_hosts_first_rank_are_read(comm: Any, mpi_tmp_path: Path, task: str, has_test: bool) -> None:
    x, y = DIGITS.x, DIGITS.y if task == "classify" else DIGITS.x[:, :2] * [3.0, 0.5] + 1
    parts = {"x_train": x[::2], "y_train": y[::2], "x_test": x[1::2], "y_test": y[1::2]} if has_test else {"x": x, "y": y}
    if comm.rank == 0:
        np.savez(mpi_tmp_path / "t.npz", **parts)
    counted = CountedComm(comm)
    from_file = trained(counted, replace(SMALL, data=str(mpi_tmp_path / "t.npz")))
    mine = list(parts.values()) if counted.host.rank == 0 else [None] * len(parts)
    from_arrays = trained(counted, SMALL, mine)
    lists = trained(counted, SMALL, [part.tolist() for part in parts.values()])
    counted.free()
    assert from_file["values"].tobytes() == from_arrays["values"].tobytes()
    assert lists["values"].tobytes() == from_file["values"].tobytes()
    for name in ("test_accuracy" if task == "classify" else "test_r2", "test_loss", "final_loss"):
        assert from_file["summary"][name] == pytest.approx(from_arrays["summary"][name], rel=1e-12)
    assert from_arrays["summary"]["data"] == "arrays" and from_arrays["summary"]["task"] == task


def test_sparse_rows_teach_what_dense_ones_do() -> None:
    x = np.where(DIGITS.x > 3, DIGITS.x, 0)
    dense, sparse = (trained(None, SMALL, (rows, DIGITS.y)) for rows in (x, scipy.sparse.csr_matrix(x)))
    assert dense["values"].tobytes() == sparse["values"].tobytes()


def test_a_model_gives_the_outputs_in_the_unit_of_the_targets_and_survives_pickling() -> None:
    y = DIGITS.x[:, :2] * [3.0, 0.5] + 100
    model = trained(None, SMALL, (DIGITS.x, y))["model"]
    scaled = (DIGITS.x - model.scaler.offset) * model.scaler.factor
    hidden = np.maximum(scaled @ model.network.params.view(model.values, "layers.0.weight") + model.network.params.view(model.values, "layers.0.bias"), 0)
    sums = hidden @ model.network.params.view(model.values, "layers.1.weight") + model.network.params.view(model.values, "layers.1.bias")
    expected = sums * model.targets.scale + model.targets.offset
    np.testing.assert_allclose(model.outputs(DIGITS.x), expected, rtol=1e-12)
    assert np.abs(expected - 100).max() < 1000 and np.abs(sums - expected).min() > 50, "the check does not see targets that stay scaled"
    again = pickle.loads(pickle.dumps(model))
    assert again.outputs(DIGITS.x).tobytes() == model.outputs(DIGITS.x).tobytes()


def test_a_pickled_network_leaves_its_buffers_behind() -> None:
    network = build("mlp", 40, 3, (30,), dropout=0.1, backend="numpy")
    empty = len(pickle.dumps(network))
    flat = network.init(1)
    network.bind(5000, flat, np.empty_like(flat)).run(1.0)
    again = pickle.loads(pickle.dumps(network))
    assert len(pickle.dumps(network)) == empty < 5000
    assert again.init(1).tobytes() == flat.tobytes() and again.backend is network.backend


@pytest.mark.parametrize(
    ("changes", "data", "says"),
    [
        ({"data": "my.npz"}, 2, "--data my.npz: does nothing, the data are arrays"),
        ({"label": "price"}, 2, "--label price: does nothing, the data are arrays"),
        ({"test_data": "t.csv"}, 2, "--test-data t.csv: does nothing, the data are arrays"),
        ({"hold_out": 0.3}, 4, "--hold-out 0.3: does nothing, arrays has test rows of its own"),
        ({}, 3, "arrays: are 3; give x, y or x, y, test_x, test_y"),
    ],
)
def test_what_says_how_files_are_read_is_refused(changes: dict[str, Any], data: int, says: str) -> None:
    with pytest.raises(UserError) as error:
        trained(None, replace(SMALL, **changes), [DIGITS.x, DIGITS.y, DIGITS.x, DIGITS.y][:data])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_arrays_are_checked_as_files_are() -> None:
    x = DIGITS.x.astype(np.float64)
    x[7, 3] = np.nan
    for data, says in (
        ((x, DIGITS.y), "arrays: x holds nan in row 7, column 3"),
        ((DIGITS.x, DIGITS.y[:5]), "arrays: x has 2000 rows, y has 5 labels"),
        ((DIGITS.x[0], DIGITS.y), "arrays: x has shape (64,)"),
        ((DIGITS.x, DIGITS.y, x, DIGITS.y), "arrays: test_x holds nan in row 7"),
        ((DIGITS.x, DIGITS.y, DIGITS.x, DIGITS.y + 1), "arrays, test_y: label 10 in row"),
    ):
        with pytest.raises(UserError) as error:
            trained(None, SMALL, data)
        assert says in str(error.value)
