"""Hold regression to its laws: N ranks are a serial loop, the unit of the targets changes no bit of the model, measures are in that unit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpidml
from mpidml.core import rng
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.readers import read
from mpidml.data.split import hold_out
from mpidml.nn.models import build
from mpidml.runtime.comm import CountedComm
from mpidml.strategies.base import train

SMALL = Job(hidden=(12, 7), steps=30, batch=50, dtype="float64", backend="numpy", seed=3, lr=0.02)


def problem() -> tuple[Any, Any]:
    """Return a view of the shipped digits and two properties of the shapes, in units far apart, as (2000, 64) and (2000, 2)."""
    shape = read("digits", "mor").x.astype(np.float64)
    return read("digits", "kar").x.astype(np.float64), np.stack([shape[:, 1] * 0.01 + 0.25, shape[:, 2] * 100 - 7.5], axis=1)


def written(folder: Path, x: Any, y: Any) -> str:
    path = folder / "t.npz"
    np.savez(path, x=x, y=y)
    return str(path)


def serial(x: Any, y: Any, job: Job = SMALL) -> tuple[Any, dict[str, float]]:
    """Train in a plain loop on standardised targets; return the parameters, and the measures in the unit of the targets."""
    train_ids, test_ids = hold_out(len(x), job.hold_out, job.seed)
    mean, deviation = x[train_ids].mean(axis=0), x[train_ids].std(axis=0)
    x = (x - mean) / deviation
    offset = y[train_ids].mean(axis=0)
    unit = np.sqrt(((y[train_ids] - offset) ** 2).mean())
    t = (y - offset) / unit
    widths = [x.shape[1], *job.hidden, y.shape[1]]
    flat = build("mlp", widths[0], widths[-1], job.hidden, dtype="float64", loss="squared_error", backend="numpy").init(job.seed)
    weights, at = [], 0
    for a, b in pairwise(widths):
        weights.append([flat[at : at + a * b].reshape(a, b), flat[at + a * b : at + a * b + b]])
        at += a * b + b
    velocity = [[np.zeros_like(v) for v in pair] for pair in weights]

    def outputs_of(rows: Any) -> list[Any]:
        found = [x[rows]]
        for i, (w, b) in enumerate(weights):
            z = found[-1] @ w + b
            found.append(np.maximum(z, 0) if i < len(weights) - 1 else z)
        return found

    order = rng.stream(job.seed, "order", 0).permutation(len(train_ids))
    losses = []
    for k in range(job.steps):
        rows = train_ids[order[k * job.batch : (k + 1) * job.batch]]
        outputs = outputs_of(rows)
        d = (outputs[-1] - t[rows]) / len(rows)
        losses.append(0.5 * ((outputs[-1] - t[rows]) ** 2).sum() / len(rows) * unit**2)
        for i in reversed(range(len(weights))):
            gradient = [outputs[i].T @ d, d.sum(axis=0)]
            d = (d @ weights[i][0].T) * (outputs[i] > 0)
            for j in range(2):
                velocity[i][j] = 0.9 * velocity[i][j] + gradient[j]
                weights[i][j] -= job.lr * velocity[i][j]
    wrong = outputs_of(test_ids)[-1] * unit + offset - y[test_ids]
    spread = ((y[test_ids] - y[test_ids].mean(axis=0)) ** 2).sum()
    measures = {
        "test_loss": 0.5 * (wrong**2).sum() / len(test_ids),
        "test_rmse": np.sqrt((wrong**2).mean()),
        "test_r2": 1 - (wrong**2).sum() / spread,
    }
    return flat, {name: float(value) for name, value in measures.items()} | {"final_loss": float(np.mean(losses[-32:]))}


@pytest.mark.mpi
def test_regression_on_any_number_of_ranks_is_a_serial_loop(comm: Any, mpi_tmp_path: Path) -> None:
    x, y = problem()
    if comm.rank == 0:
        written(mpi_tmp_path, x, y)
    counted, kept = CountedComm(comm), {}
    summary = train(SMALL.with_values({"data": str(mpi_tmp_path / "t.npz")}, "test"), counted, quiet=True, write=False, keep=kept)
    counted.free()
    values, measures = serial(x, y)
    assert np.abs(kept["values"] - values).max() < 1e-9
    assert {name: summary[name] for name in measures} == pytest.approx(measures, rel=1e-9)
    assert summary["task"] == "regress" and "test_accuracy" not in summary
    assert kept["metrics"] is None or kept["metrics"][-1]["final_test_r2"] == summary["test_r2"]


def run(tmp_path: Path, x: Any, y: Any, **changes: Any) -> dict[str, Any]:
    job = SMALL.with_values({"data": written(tmp_path, x, y)} | changes, "test")
    return mpidml.train(job, quiet=True, write=False)


def test_the_unit_of_the_targets_changes_no_bit_of_the_model(tmp_path: Path) -> None:
    """Powers of two change exponents only; losses are squares, the root of the mean square is a length, R2 has no unit."""
    x, y = problem()
    one, four, other = run(tmp_path, x, y), run(tmp_path, x, 4 * y), run(tmp_path, x, y**2)
    assert one["model_sha256"] == four["model_sha256"] != other["model_sha256"]
    assert four["test_rmse"] == 4 * one["test_rmse"] and four["test_r2"] == pytest.approx(one["test_r2"], abs=1e-12)
    assert (four["test_loss"], four["final_loss"]) == (16 * one["test_loss"], 16 * one["final_loss"])


def test_one_scale_for_all_targets_minimises_the_squared_error_in_their_unit() -> None:
    from mpidml.data.targets import Targets

    _, y = problem()
    outputs = y + np.array([0.3, -2.0])
    fitted = Targets.fit("t", y, y[:50])
    scaled = [fitted.scaled(v) for v in (outputs, y)]
    assert fitted.squared_errors(*scaled) == pytest.approx(len(y) * (0.09 + 4.0))
    each = y.std(axis=0)  # the broken variant: a scale for each column weighs a small error in a narrow column more
    assert ((outputs / each - y / each) ** 2).sum() * (each**2).mean() != pytest.approx(len(y) * 4.09, rel=0.1)


def test_predicting_the_mean_has_an_r2_of_0_and_equal_targets_have_none() -> None:
    from mpidml.data.targets import Targets

    y = np.arange(12.0).reshape(6, 2)
    fitted = Targets.fit("t", y, y)
    assert fitted.quality(fitted.squared_errors(np.zeros((6, 2)), fitted.scaled(y)), 6)["test_r2"] == pytest.approx(0)
    constant = np.full((5, 1), 3.7)
    fitted = Targets.fit("t", constant, constant)
    assert fitted.scale == 1 and np.abs(fitted.scaled(constant)).max() < 1e-12
    assert fitted.quality(0.0, 5) == {"test_rmse": 0.0, "test_r2": None}
    with pytest.raises(UserError, match=r"t: targets reach 1e\+200, too large to be squared"):
        Targets.fit("t", np.array([[1e200], [-1e200]]), constant)


def test_only_numbers_that_are_not_whole_are_targets_by_themselves(tmp_path: Path) -> None:
    x = np.eye(6)
    kinds = {}
    for name, y in {"half": [0, 1, 2, 0, 1, 1.5], "float": [0.0, 1, 2, 0, 1, 2], "whole": [0, 1, 2, 0, 1, 2]}.items():
        for task in ("auto", "regress", "classify"):
            path = written(tmp_path, x, np.array(y))
            try:
                kinds[name, task] = read(path, task=task).y.dtype.kind
            except UserError as error:
                assert "label 1.5 in row 5 is not an integer" in str(error)
                kinds[name, task] = "refused"
    assert [kinds["half", task] for task in ("auto", "regress", "classify")] == ["f", "f", "refused"]
    assert all([kinds[name, task] for task in ("auto", "regress", "classify")] == ["i", "f", "i"] for name in ("float", "whole"))
    assert read(written(tmp_path, x, np.array([0, 1, 2, 0, 1, 1.5])), task="auto").notes[0].startswith("a regression, since 1.5 in row 5")
    many = read(written(tmp_path, np.ones((300, 1)), np.arange(300)), task="auto")
    assert many.notes == ("labels are whole numbers up to 299, taken as 300 classes (--task regress: amounts)",)
    remedy = "(code them as 0..k-1 where that is not meant)"
    for y, says in [([1, 2, 3, 1, 2, 3], "label 0, and labels up to 3 are 4 classes"), ([5, 5, 0, 5, 5, 5], "label 1, 2, 3 and 1 more, and labels up to 5")]:
        (note,) = read(written(tmp_path, x[:6], np.array(y)), task="auto").notes
        assert note.startswith(f"no row has {says}") and note.endswith(remedy)


def test_a_regression_ends_at_a_loss_and_has_no_accuracy_to_end_at(tmp_path: Path) -> None:
    x, y = problem()
    _, measures = serial(x, y)
    found = run(tmp_path, x, y, target=f"loss:{measures['test_loss'] * 2}", steps=0, epochs=3)
    assert found["target_seconds"] is not None
    with pytest.raises(UserError, match=r"--target 0.9: a regression has no accuracy; give a loss"):
        run(tmp_path, x, y, target="0.9")
    with pytest.raises(UserError, match=r"y_test: the target of row 1 is inf; give finite numbers"):
        np.savez(tmp_path / "u.npz", x_train=x, y_train=y[:, 0], x_test=x[:2], y_test=np.array([1.5, np.inf]))
        read(str(tmp_path / "u.npz"), task="auto")
    with pytest.raises(UserError, match="train rows have 2 targets, test rows have 1"):
        np.savez(tmp_path / "u.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2, 0])
        read(str(tmp_path / "u.npz"), task="auto")


def test_a_run_says_what_it_regresses_on_and_writes_what_undoes_the_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import load_file

    x, y = problem()
    summary = mpidml.train(SMALL.with_values({"data": written(tmp_path, x, y), "out": str(tmp_path / "run"), "epochs": 2, "steps": 0}, "test"))
    said = capsys.readouterr().out
    assert "2 target(s)" in said and "data: a regression, since" in said
    assert f"test RMSE {summary['test_rmse']:.4g}, R2 {summary['test_r2']:.4f}" in said and "RMSE" in said.split("done")[0]
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    train_ids, _ = hold_out(len(x), SMALL.hold_out, SMALL.seed)
    assert tensors["targets.offset"] == pytest.approx(y[train_ids].mean(axis=0))
    assert tensors["targets.scale"][0] ** 2 == pytest.approx(y[train_ids].var(axis=0).mean())
    assert (tmp_path / "run" / "report.png").stat().st_size > 10_000


def test_words_are_no_amounts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n1,low\n2,high\n")
    with pytest.raises(UserError, match="--task regress: the labels are words"):
        read(str(tmp_path / "t.csv"), task="regress")


def test_a_loss_of_classes_that_is_asked_for_is_refused_on_amounts_and_taken_where_nobody_asks(tmp_path: Path) -> None:
    x, y = problem()
    with pytest.raises(UserError, match=r"--loss cross_entropy: takes class labels, the targets are numbers .*; use squared_error or huber"):
        run(tmp_path, x, y, loss="cross_entropy")
    by_itself, asked = run(tmp_path, x, y), run(tmp_path, x, y, loss="squared_error")
    assert by_itself["model_sha256"] == asked["model_sha256"]
    labels = (y[:, 0] > y[:, 0].mean()).astype(int)
    by_itself, asked = run(tmp_path, x, labels), run(tmp_path, x, labels, loss="cross_entropy")
    assert by_itself["model_sha256"] == asked["model_sha256"] and by_itself["task"] == "classify"


@pytest.mark.mpi
def test_softened_updates_are_told_where_an_update_can_be_stale(comm: Any, mpi_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counted = CountedComm(comm)
    for sync, is_stale in (("ssp:1", comm.size > 1), ("bsp", False)):
        train(SMALL.with_values({"sync": sync, "steps": 2}, "test"), counted, write=False)
        said = capsys.readouterr().out
        assert ("stale updates are softened" in said) == (is_stale and comm.rank == 0)
    counted.free()
