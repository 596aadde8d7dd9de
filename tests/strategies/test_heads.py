"""Runs with several heads: N ranks are one rank, the total is the weighted sum, each head is told by its name, and what cannot be is one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpidml.compare import compare
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.evaluate import evaluate
from mpidml.predict import predict
from mpidml.runtime.comm import CountedComm
from mpidml.simulate import simulate
from mpidml.strategies.base import train

NET = """
[[layer]]
type = "dense"
units = 12
activation = "tanh"

[[layer]]
type = "dropout"
rate = 0.2

[[head]]
name = "kind"
label = "kind"
class_weights = "balanced"
label_smoothing = 0.05

[[head]]
name = "amounts"
label = ["price", "size"]
weight = 0.3

  [[head.layer]]
  type = "dense"
  units = 6
  activation = "relu"

  [[head.layer]]
  type = "dense"
"""
SMALL = Job(epochs=3, batch=40, dtype="float64", backend="numpy", seed=3, lr=0.05)


def table(path: Path, n: int = 300, seed: int = 0) -> str:
    """Write rows of numbers and a word, a class, and two amounts in units far apart."""
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((2, n))
    town = np.array(["Bonn", "Ulm"])[draw.integers(0, 2, n)]
    price, size = a - b + (town == "Ulm"), 100 * (a + b)
    kind = np.array(["low", "mid", "high"])[(price > 0).astype(int) + (price > 1)]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["price", "a", "town", "kind", "b", "size"])
        rows.writerows(zip(*(of.tolist() for of in (price, a, town, kind, b, size)), strict=True))
    return str(path)


def job_in(folder: Path, net: str = NET, **changes: Any) -> Job:
    if not (folder / "t.csv").exists():
        table(folder / "t.csv")
        (folder / "net.toml").write_text(net)
    return SMALL.with_values({"data": str(folder / "t.csv"), "model": str(folder / "net.toml"), **changes}, "test")


def run(folder: Path, **changes: Any) -> tuple[dict[str, Any], Any]:
    kept: dict[str, Any] = {}
    return train(job_in(folder, **changes), quiet=True, write="out" in changes, keep=kept), kept


@pytest.mark.mpi
@pytest.mark.parametrize(
    "how",
    [
        *({}, {"transport": "mpi"}, {"early_push": "on"}, {"accumulate": 2}, {"sync": "ssp:1"}, {"deterministic": True}),
        pytest.param({"group": 2}, marks=pytest.mark.shows_from(3)),
    ],
    ids=str,
)
def test_several_heads_on_any_number_of_ranks_are_one_rank(comm: Any, mpi_tmp_path: Path, how: dict[str, Any]) -> None:
    if comm.rank == 0:
        job_in(mpi_tmp_path)
    comm.Barrier()
    if comm.size == 1:
        how = {name: value for name, value in how.items() if name != "early_push"}
    found = []
    for _ in range(2 if "deterministic" in how else 1):
        counted, kept = CountedComm(comm), {}
        summary = train(job_in(mpi_tmp_path, **how), counted, quiet=True, write=False, keep=kept)
        counted.free()
        found.append(kept["values"].tobytes())
    assert len(set(found)) == 1, "repeat mode repeats"
    alone, one = CountedComm(MPI.COMM_SELF), {}
    expected = train(job_in(mpi_tmp_path), alone, quiet=True, write=False, keep=one)
    alone.free()
    if "sync" in how and comm.size > 1:
        assert np.isfinite(kept["values"]).all() and set(summary["heads"]) == {"kind", "amounts"}
        return
    assert np.abs(kept["values"] - one["values"]).max() < 1e-9
    for name in ("test_loss", "test_accuracy", "test_rmse", "final_loss"):
        assert summary[name] == pytest.approx(expected[name], rel=1e-9)
    for name, of in expected["heads"].items():
        measured = [key for key in of if key.startswith("test_")]
        assert [summary["heads"][name][key] for key in measured] == pytest.approx([of[key] for key in measured], rel=1e-9)


def test_the_loss_of_a_run_is_the_weighted_sum_and_each_head_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = train(job_in(tmp_path, out=str(tmp_path / "run"), validate=0.2, tensorboard=False))
    said = capsys.readouterr().out
    heads = summary["heads"]
    assert summary["task"] == "heads" and [of["task"] for of in heads.values()] == ["classify", "regress"]
    assert summary["test_loss"] == pytest.approx(heads["kind"]["test_loss"] + 0.3 * heads["amounts"]["test_loss"], rel=1e-12)
    assert summary["test_accuracy"] == heads["kind"]["test_accuracy"] and summary["test_r2"] == heads["amounts"]["test_r2"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    looked = [row for row in rows if "val_loss" in row]
    assert len(looked) == 2 and all(row["val_loss"] == pytest.approx(row["val_loss.kind"] + 0.3 * row["val_loss.amounts"]) for row in looked)
    assert {"val_accuracy.kind", "val_rmse.amounts", "val_accuracy"} <= set(looked[0])
    assert "kind: 3 classes; amounts: 2 target(s)" in said
    assert f"(kind: accuracy {summary['test_accuracy']:.2%}; amounts: RMSE {heads['amounts']['test_rmse']:.4g}, R2" in said
    found = evaluate(str(tmp_path / "run"), quiet=True, plot=True)
    assert (found["loss"], found["heads"]["kind"]["accuracy"]) == (summary["test_loss"], summary["test_accuracy"])
    assert [found["heads"]["amounts"][name] for name in ("rmse", "r2", "loss")] == [heads["amounts"][f"test_{name}"] for name in ("rmse", "r2", "loss")]
    assert [of["target"] for of in found["heads"]["amounts"]["each"]] == ["price", "size"]
    assert all((tmp_path / "run" / name).stat().st_size > 10_000 for name in ("report.png", "evaluation.kind.png", "evaluation.amounts.png"))


def test_one_head_is_the_run_without_heads_to_the_last_bit(tmp_path: Path) -> None:
    trunk, _ = NET.split('[[head]]\nname = "kind"')
    lone = '[[head]]\nname = "kind"\nlabel = "kind"\n'
    found = []
    for name, net, label in (("a", trunk + lone, ""), ("b", trunk + '[[layer]]\ntype = "dense"\n', "kind")):
        (tmp_path / name).mkdir()
        summary = run_net(tmp_path / name, net, label)
        found.append((summary["model_sha256"], summary["test_loss"], summary["test_accuracy"], "heads" in summary))
    assert found[0] == found[1] and not found[0][-1]


def run_net(folder: Path, net: str, label: str) -> dict[str, Any]:
    return train(job_in(folder, net, **({"label": label} if label else {})), quiet=True, write=False)


def test_predictions_have_the_columns_of_each_head_and_the_words_of_its_labels(tmp_path: Path) -> None:
    run(tmp_path, out=str(tmp_path / "run"), epochs=30)
    new = table(tmp_path / "new.csv", 70, seed=9)
    for name in ("p.csv", "p.npz"):
        predict(str(tmp_path / "run"), new, str(tmp_path / name), quiet=True)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert list(rows[0]) == ["kind.class", "kind.p_high", "kind.p_low", "kind.p_mid", "amounts.price", "amounts.size"]
    arrays = np.load(tmp_path / "p.npz")
    assert [arrays["kind.classes"][c] for c in arrays["kind.labels"]] == [row["kind.class"] for row in rows]
    assert np.array_equal(arrays["amounts.targets"], [[float(row["amounts.price"]), float(row["amounts.size"])] for row in rows])
    assert np.array_equal(arrays["kind.probabilities"], [[float(row[f"kind.p_{name}"]) for name in ("high", "low", "mid")] for row in rows])
    true = list(csv.DictReader(Path(new).read_text().splitlines()))
    right = np.mean([row["kind.class"] == of["kind"] for row, of in zip(rows, true, strict=True)])
    later = evaluate(str(tmp_path / "run"), data=new, quiet=True, write=False)["heads"]
    assert later["kind"]["accuracy"] == right > 0.7
    off = np.array([[float(row[f"amounts.{name}"]) - float(of[name]) for name in ("price", "size")] for row, of in zip(rows, true, strict=True)])
    assert later["amounts"]["rmse"] == pytest.approx(np.sqrt(np.square(off).mean()), rel=1e-9)


def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, deterministic=True, optimizer="adam", lr=0.01)
    run(tmp_path, deterministic=True, optimizer="adam", lr=0.01, epochs=2, checkpoint_every=4, out=str(tmp_path / "run"))
    again = train(job_in(tmp_path, deterministic=True, optimizer="adam", lr=0.01, out=str(tmp_path / "run"), resume=str(tmp_path / "run")), quiet=True)
    assert again["model_sha256"] == whole["model_sha256"] and again["heads"] == whole["heads"]


def test_patience_looks_at_the_total_and_targets_at_a_head(tmp_path: Path) -> None:
    found, _ = run(tmp_path, validate=0.2, patience=1, epochs=5)
    assert found["best_val_loss"] == pytest.approx(found["val_loss"]) and "val_accuracy" in found["heads"]["kind"]
    for target in ("0.3", "accuracy.kind:0.3", "loss.amounts:5", "loss:5"):
        reached, _ = run(tmp_path, target=target, epochs=4)
        assert reached["target_seconds"] is not None, target
    for target, says in (
        ("accuracy.amounts:0.9", "a regression has no accuracy"),
        ("accuracy.kinds:0.9", r"did you mean 'kind'\?"),
        ("accuracy.:0.9", "is no target"),
    ):
        with pytest.raises(UserError, match=says):
            run(tmp_path, target=target)


def test_two_heads_of_classes_have_no_one_accuracy(tmp_path: Path) -> None:
    net = NET.replace('["price", "size"]\nweight = 0.3', '"town"')
    found = run_net(tmp_path, net, "")
    assert "test_accuracy" not in found and 0 < found["heads"]["amounts"]["test_accuracy"] <= 1
    with pytest.raises(UserError, match=r"--target 0.9: 2 of the heads have an accuracy; name one, as accuracy.kind:0.97"):
        train(job_in(tmp_path, target="0.9"), quiet=True, write=False)


def test_columns_of_an_array_are_learnt_by_their_numbers(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    x = draw.standard_normal((200, 3))
    y = np.stack([x[:, 0] * 3, draw.standard_normal(200), (x[:, 1] > 0) + 0.0], axis=1)
    np.savez(tmp_path / "t.npz", x=x, y=y)
    numbers = NET.replace('"kind"\nclass', "2\nclass").replace('["price", "size"]', "0")
    (tmp_path / "net.toml").write_text(numbers)
    job = SMALL.with_values({"data": str(tmp_path / "t.npz"), "model": str(tmp_path / "net.toml"), "out": str(tmp_path / "run"), "epochs": 20}, "test")
    from_file = train(job, quiet=True)
    from_arrays = train(SMALL.with_values({"model": job.model, "epochs": 20}, "test"), quiet=True, write=False, data=(x, y))
    assert from_file["model_sha256"] == from_arrays["model_sha256"] and from_file["heads"]["amounts"]["test_r2"] > 0.5
    other = train(SMALL.with_values({"model": job.model, "epochs": 20}, "test"), quiet=True, write=False, data=(x, y * [4, 1, 1]))
    assert other["model_sha256"] == from_file["model_sha256"], "the unit of amounts changes no bit of the model"
    assert other["heads"]["amounts"]["test_rmse"] == 4 * from_file["heads"]["amounts"]["test_rmse"]
    found = evaluate(job.out, data=str(tmp_path / "t.npz"), quiet=True, write=False)
    assert found["heads"]["kind"]["accuracy"] > 0.8 and found["heads"]["amounts"]["r2"] > 0.5
    (tmp_path / "net.toml").write_text(numbers.replace("label = 0", "label = 3"))
    with pytest.raises(UserError, match=r"t.npz: y has 3 column\(s\), and label = 3 is none of them; give numbers from 0 to 2"):
        train(job.with_values({"out": ""}, "test"), quiet=True, write=False)
    (tmp_path / "net.toml").write_text(NET)
    with pytest.raises(UserError, match=r"column 'kind' was named, but only tables .* give the number of a column of y, as label = 0"):
        train(job.with_values({"out": ""}, "test"), quiet=True, write=False)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('label = "kind"', 'label = "kinds"', "there is no column 'kinds'"),
        ('label = "kind"', "label = 0", "label = 0: the columns of a table have names"),
        ('label = "kind"', 'label = "a"\nloss = "cross_entropy"', "head 'kind', label a: label 0.125"),
        ('["price", "size"]', '["price", "town"]', "head 'amounts': learns 2 columns, and one of them holds words"),
        ("weight = 0.3", 'loss = "hinge"', "head 'amounts': learns 2 columns, and its loss takes classes"),
    ],
)
def test_labels_that_a_head_cannot_learn_are_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in NET
    with pytest.raises(UserError) as error:
        train(job_in(tmp_path, NET.replace(old, new, 1).replace('class_weights = "balanced"\nlabel_smoothing = 0.05', "")), quiet=True, write=False)
    assert says.split(": label 0.")[0] in str(error.value) and "\n" not in str(error.value)


def test_a_row_without_the_label_of_one_head_is_one_line(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    lines = Path(job.data).read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","
    Path(job.data).write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"row 2 \(line 4\) has an empty label in column 5 \('size'\); give each row all its labels, or leave it out"):
        train(job, quiet=True, write=False)


def test_several_heads_are_compared_and_simulated_as_others(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    values = {"data": job.data, "model": job.model, "epochs": 1, "batch": 40, "backend": "numpy"}
    compared = compare(values | {"sync": "bsp,ssp:1"}, quiet=True, write=False)
    one, *others = [row["heads"]["kind"]["test_accuracy"] for row in compared]
    assert len(others) == 2 and all(0 < accuracy <= 1 for accuracy in (one, *others))
    (learnt,) = simulate(values | {"workers": 3, "learn": True, "compute": 0.01, "validate": 0.2, "epochs": 2}, quiet=True, write=False)
    heads = learnt["heads"]
    assert learnt["val_loss"] == pytest.approx(heads["kind"]["val_loss"] + 0.3 * heads["amounts"]["val_loss"])
