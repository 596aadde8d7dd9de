"""A saved run is as good as it said, at any number of ranks, and predicts rows it never saw with the same bytes; what cannot be is one line."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpidml
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.readers import read
from mpidml.evaluate import evaluate
from mpidml.predict import CHUNK, predict
from mpidml.runtime import saved
from mpidml.runtime.comm import CountedComm
from mpidml.strategies.base import train
from tests.ranks import mpirun, python

SMALL = Job(hidden=(24,), epochs=2, backend="numpy", report=False)
N_NEW = 2 * CHUNK + 77
"""Rows of several chunks, the last of which is short."""


def table(path: Path, rows: range, label: str | None = "answer") -> str:
    """Write rows of numbers and words, with a label that is a word or without."""
    draw = np.random.default_rng(5)
    n = 400 + N_NEW
    towns, a, b = np.array(["Bonn", "Kiel", "Ulm"])[draw.integers(0, 3, n)], draw.standard_normal(n), draw.standard_normal(n)
    z = a + 0.7 * b + (towns == "Ulm") + 0.7 * draw.standard_normal(n)
    answers = np.array(["never", "often", "seldom, if so"])[(z > -0.5).astype(int) + (z > 1)]
    lines = [",".join(["a", "town", "b", *([label] if label else [])])]
    lines += [f"{float(a[i])!r},{towns[i]},{float(b[i])!r}" + (f',"{answers[i]}"' if label else "") for i in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def amounts(path: Path, with_targets: bool = True) -> str:
    draw = np.random.default_rng(6)
    x = draw.standard_normal((N_NEW, 3))
    y = np.stack([x @ [1, 2, 3] * 100 + 7, x @ [1, 0, -1] + 0.1 * draw.standard_normal(N_NEW)], axis=1)
    np.savez(path, **({"x": x, "y": y} if with_targets else {"x": x}))
    return str(path)


def words(path: Path) -> str:
    """Write sparse rows of svmlight: counts of a few of 5,000 words, and whether more of them are of the first half."""
    draw = np.random.default_rng(7)
    columns = np.sort(draw.integers(0, 5000, (900, 9)), axis=1)
    lines = [f"{int((of < 2500).sum() > 4)} " + " ".join(f"{c + 1}:{1 + c % 3}" for c in dict.fromkeys(of.tolist())) for of in columns]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def runs(folder: Path, comm: Any, leads: bool) -> dict[str, dict[str, Any]]:
    """Train a classifier of digits, one of a table with words, one of sparse rows, and a regression; return their summaries (Collective on comm, a CountedComm)."""
    if leads:
        table(folder / "train.csv", range(400))
        table(folder / "new.csv", range(400, 400 + N_NEW))
        table(folder / "bare.csv", range(400, 400 + N_NEW), None)
        amounts(folder / "amounts.npz")
        amounts(folder / "later.npz", False)
        words(folder / "words.svm")
    comm.Barrier()
    jobs = {"digits": {}, "words": {"data": str(folder / "train.csv"), "class_weights": "balanced"}, "amounts": {"data": str(folder / "amounts.npz"), "lr": 0.01}}
    jobs |= {"sparse": {"data": str(folder / "words.svm"), "scale": "maxabs"}}
    return {name: train(SMALL.with_values({"out": str(folder / name), **values}, "test"), comm, quiet=True) for name, values in jobs.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("runs")
    comm = CountedComm()
    found = runs(folder, comm, True)
    comm.free()
    return folder, found


def test_sparse_rows_are_scored_as_dense_ones_and_never_become_them(trained: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, summaries = trained
    x, y = (lambda raw: (raw.x.toarray(), raw.y))(read(str(folder / "words.svm")))
    np.savez(folder / "dense.npz", x=x, y=y)
    of_dense = evaluate(folder / "sparse", quiet=True, write=False, data=folder / "dense.npz")
    monkeypatch.setattr(saved, "scaled_rows", None)  # what makes rows dense
    of_sparse = evaluate(folder / "sparse", quiet=True, write=False, data=folder / "words.svm")
    assert of_sparse["loss"] == pytest.approx(of_dense["loss"], rel=1e-5) and of_sparse["right"] == of_dense["right"]
    weights = load_file(folder / "sparse" / "model.safetensors")
    assert weights["layers.0.weight"].shape == (x.shape[1], 24)
    assert summaries["sparse"]["test_accuracy"] == evaluate(folder / "sparse", quiet=True, write=False)["accuracy"]


def quality_of(result: dict[str, Any]) -> dict[str, Any]:
    names = {"accuracy": "test_accuracy", "rmse": "test_rmse", "r2": "test_r2", "loss": "test_loss"}
    return {names[name]: result[name] for name in names if name in result}


@pytest.mark.mpi
def test_any_number_of_ranks_finds_what_the_run_of_another_number_found(comm: Any, mpi_tmp_path: Path) -> None:
    """Accuracy, loss, RMSE and R2 to the last bit; files of all ranks have the bytes of those that one rank writes."""
    few = max(1, comm.size - 1)
    part = comm.Split(0 if comm.rank < few else 1, comm.rank)
    summaries: dict[str, dict[str, Any]] | None = None
    if comm.rank < few:
        ranks = CountedComm(part)
        summaries = runs(mpi_tmp_path, ranks, comm.rank == 0)
        ranks.free()
    summaries = comm.bcast(summaries)
    alone = comm.Split(comm.rank, 0)
    everyone, one = CountedComm(comm), CountedComm(alone)
    for name, summary in summaries.items():
        run = mpi_tmp_path / name
        found = evaluate(run, everyone, quiet=True, out=str(mpi_tmp_path / f"{name}-all"))
        assert quality_of(found).items() <= summary.items(), name
        assert found == evaluate(run, one, quiet=True, write=False)
        if "right" in found:
            assert found["right"] == round(summary["test_accuracy"] * found["rows"]) == np.trace(found["confusion"])
    for name, data in (("words", "new.csv"), ("amounts", "amounts.npz"), ("sparse", "words.svm")):
        assert evaluate(mpi_tmp_path / name, everyone, True, False, data=str(mpi_tmp_path / data)) == evaluate(
            mpi_tmp_path / name, one, True, False, data=str(mpi_tmp_path / data)
        )
        for ending in ("csv", "npz"):
            several, single = mpi_tmp_path / f"all-{name}.{ending}", mpi_tmp_path / f"one-{name}-{comm.rank}.{ending}"
            predict(mpi_tmp_path / name, str(mpi_tmp_path / data), str(several), everyone, quiet=True)
            predict(mpi_tmp_path / name, str(mpi_tmp_path / data), str(single), one, quiet=True)
            assert several.read_bytes() == single.read_bytes() and several.stat().st_size > 10_000
    for each in (everyone, one):
        each.free()
    for each in (part, alone):
        each.Free()


def forward(folder: Path, x: Any) -> Any:
    """Compute outputs in float64 from the file of the model, by hand."""
    t = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}
    h = np.maximum((x - t["scaler.offset"]) * t["scaler.factor"] @ t["layers.0.weight"] + t["layers.0.bias"], 0)
    return h @ t["layers.1.weight"] + t["layers.1.bias"]


def coded(path: str) -> tuple[Any, list[str]]:
    rows = list(csv.DictReader(Path(path).read_text(encoding="utf-8").splitlines()))
    x = np.array([[float(r["a"]), *(r["town"] == town for town in ("Bonn", "Kiel", "Ulm")), float(r["b"])] for r in rows])
    return x, [r.get("answer", "") for r in rows]


def test_predictions_are_those_of_the_model_by_hand_in_the_order_of_the_rows(trained: Any, tmp_path: Path) -> None:
    folder, _ = trained
    x, answers = coded(str(folder / "new.csv"))
    z = forward(folder / "words", x)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    names = ["never", "often", "seldom, if so"]
    for data in ("new.csv", "bare.csv"):
        for ending in ("csv", "npz"):
            told = predict(folder / "words", str(folder / data), str(tmp_path / f"{data}.{ending}"), quiet=True)
            assert (told["rows"], told["classes"]) == (N_NEW, names)
    assert (tmp_path / "new.csv.csv").read_bytes() == (tmp_path / "bare.csv.csv").read_bytes()
    header, *rows = list(csv.reader((tmp_path / "bare.csv.csv").read_text(encoding="utf-8").splitlines()))
    assert header == ["class", *(f"p_{name}" for name in names)]
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), p, rtol=1e-4, atol=1e-6)
    sure = np.sort(p, axis=1)[:, -1] - np.sort(p, axis=1)[:, -2] > 1e-4
    assert [row[0] for row in np.array(rows)[sure]] == [names[c] for c in p.argmax(axis=1)[sure]]
    with np.load(tmp_path / "bare.csv.npz") as arrays:
        assert arrays["classes"].tolist() == names and [names[c] for c in arrays["labels"]] == [row[0] for row in rows]
        assert arrays["probabilities"].dtype == np.float32 and np.array_equal(arrays["probabilities"], np.array([row[1:] for row in rows], np.float32))
    right = evaluate(folder / "words", data=str(folder / "new.csv"), quiet=True, write=False)["right"]
    assert right == sum(row[0] == answer for row, answer in zip(rows, answers, strict=True)) != sum(
        row[0] == answer for row, answer in zip(rows[::-1], answers, strict=True)
    )


def test_amounts_are_told_in_their_own_unit(trained: Any, tmp_path: Path) -> None:
    folder, _ = trained
    with np.load(folder / "amounts.npz") as of:
        x, y = of["x"], of["y"]
    t = load_file(folder / "amounts" / "model.safetensors")
    expected = forward(folder / "amounts", x) * t["targets.scale"] + t["targets.offset"]
    for data in ("amounts.npz", "later.npz"):
        predict(folder / "amounts", str(folder / data), str(tmp_path / f"{data}.csv"), quiet=True)
        predict(folder / "amounts", str(folder / data), str(tmp_path / f"{data}.npz"), quiet=True)
        rows = np.loadtxt(tmp_path / f"{data}.csv", delimiter=",", skiprows=1)
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-3)
        assert np.array_equal(np.load(tmp_path / f"{data}.npz")["targets"], rows)
    found = evaluate(folder / "amounts", data=str(folder / "amounts.npz"), quiet=True, write=False)
    off = expected - y
    assert found["rmse"] == pytest.approx(np.sqrt((off**2).mean()), rel=1e-5) and found["mae"] == pytest.approx(np.abs(off).mean(), rel=1e-5)
    assert found["r2"] == pytest.approx(1 - (off**2).sum() / ((y - y.mean(axis=0)) ** 2).sum(), rel=1e-6)
    assert found["loss"] == pytest.approx(0.5 * (off**2).sum() / len(y), rel=1e-5)


def test_the_figures_of_the_classes_are_those_of_the_outputs_by_hand(trained: Any) -> None:
    from mpidml.core.quality import auc

    folder, _ = trained
    x, answers = coded(str(folder / "new.csv"))
    y = np.array([["never", "often", "seldom, if so"].index(answer) for answer in answers])
    z = forward(folder / "words", x)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    found = evaluate(folder / "words", data=str(folder / "new.csv"), quiet=True, write=False)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (y, z.argmax(axis=1)), 1)
    assert np.abs(np.array(found["confusion"]) - counts).sum() <= 2, "but for rows on the border of two classes"
    assert [of["roc_auc"] for of in found["classes"]] == pytest.approx([auc(y == c, log_p[:, c]) for c in range(3)], abs=1e-5)
    assert found["roc_auc"] == pytest.approx(np.mean([of["roc_auc"] for of in found["classes"]]))
    weights = np.array(json.loads((folder / "words/coding.json").read_text())["class_weights"])
    assert found["loss"] == pytest.approx(-(weights[y] * log_p[np.arange(len(y)), y]).mean(), rel=1e-5)
    assert len(set(weights)) == 3


def test_the_report_and_the_picture_say_it_and_the_run_folder_may_have_been_moved(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, summaries = trained
    shutil.copytree(folder / "digits", tmp_path / "moved")
    found = evaluate(tmp_path / "moved", plot=True)
    said = capsys.readouterr().out
    assert f"accuracy {summaries['digits']['test_accuracy']:.2%} ({found['right']} right)" in said and "on its 400 test rows of digits" in said
    assert all(f"\n{c} " in said for c in range(10)) and "macro mean" in said and "mean of one class against the others" in said
    assert json.loads((tmp_path / "moved/evaluation.json").read_text()) == found
    assert (tmp_path / "moved/evaluation.png").stat().st_size > 20_000
    evaluate(folder / "amounts", plot=True, out=str(tmp_path / "of_amounts"))
    assert "RMSE" in capsys.readouterr().out and (tmp_path / "of_amounts/evaluation.png").stat().st_size > 20_000
    assert not list(tmp_path.rglob(".*"))


def test_a_network_with_codes_is_rebuilt_and_refuses_codes_that_it_never_saw(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", range(400))
    (tmp_path / "net.toml").write_text("[[layer]]\ntype = 'embedding'\ncolumns = [1]\nunits = 3\n[[layer]]\ntype = 'dense'\n")
    job = SMALL.with_values({"hidden": "256,128", "data": str(tmp_path / "train.csv"), "categories": "codes", "model": str(tmp_path / "net.toml")}, "test")
    summary = mpidml.train(job.with_values({"out": str(tmp_path / "run")}, "test"), quiet=True)
    (tmp_path / "net.toml").unlink()  # the run has its own copy
    assert evaluate(tmp_path / "run", quiet=True)["accuracy"] == summary["test_accuracy"]
    np.savez(tmp_path / "codes.npz", x=np.array([[0.5, 2, 1], [0.5, 3, 1]]))
    with pytest.raises(UserError, match=r"codes.npz: column 1 holds 3 in row 1, the run learnt codes from 0 to 2; give such codes"):
        predict(tmp_path / "run", str(tmp_path / "codes.npz"), str(tmp_path / "p.csv"), quiet=True)
    np.savez(tmp_path / "codes.npz", x=np.array([[0.5, 2, 1]]))
    assert predict(tmp_path / "run", str(tmp_path / "codes.npz"), str(tmp_path / "p.csv"), quiet=True)["rows"] == 1


@pytest.mark.parametrize(("loss", "kind"), [("hinge", "score"), ("squared_error", "score"), ("binary_cross_entropy", "p")])
def test_every_loss_names_classes_and_calls_probabilities_what_are_some(tmp_path: Path, loss: str, kind: str) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((300, 3))
    np.savez(tmp_path / "t.npz", x=x, y=x[:, 0] + 0.3 * x[:, 1] > 0)
    summary = mpidml.train(SMALL.with_values({"loss": loss, "lr": 0.01, "epochs": 20, "data": str(tmp_path / "t.npz"), "out": str(tmp_path / "run")}, "test"), quiet=True)
    found = evaluate(tmp_path / "run", quiet=True)
    assert quality_of(found).items() <= summary.items() and found["roc_auc"] > 0.9
    predict(tmp_path / "run", str(tmp_path / "t.npz"), str(tmp_path / "p.csv"), quiet=True)
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == f"class,{kind}_0,{kind}_1"


def test_the_commands_do_it_as_users_start_them(trained: Any, tmp_path: Path) -> None:
    folder, summaries = trained
    run = str(folder / "digits")
    result = mpirun(2, ["-m", "mpidml", "evaluate", run, "--out", tmp_path / "of_two", "--plot"])
    assert result.code == 0 and result.err == "" and result.out.count("macro mean") == 1, result
    assert json.loads((tmp_path / "of_two/evaluation.json").read_text())["accuracy"] == summaries["digits"]["test_accuracy"]
    result = python(["-m", "mpidml", "predict", str(folder / "words"), "--data", folder / "bare.csv", "--out", tmp_path / "p.csv"])
    assert result.code == 0 and result.err == "" and f"{N_NEW:,} rows" in result.out, result


def changed(folder: Path, to: Path, name: str) -> Path:
    """Copy a run and spoil it."""
    path = to / name
    shutil.copytree(folder, path)
    if name == "unfinished":
        (path / "model.safetensors").unlink()
    elif name == "paused":
        (path / "model.safetensors").unlink()
        (path / "checkpoints/000000000400").mkdir(parents=True)
    elif name == "uncoded":
        (path / "coding.json").unlink()
    elif name == "cut":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])
    elif name == "comparison":
        (path / "compare.json").write_text("[]")
    else:
        tensors = load_file(path / "model.safetensors")
        tensors["layers.0.bias"][0] += 1
        save_file(tensors, path / "model.safetensors", {"model_sha256": json.loads((path / "summary.json").read_text())["model_sha256"]})
    return path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unfinished", r"holds no model \(model.safetensors\), the run has not ended; wait for its end"),
        ("paused", r"has not ended, it has checkpoints; go on with it: python -m mpidml train --resume .*paused"),
        ("uncoded", r"holds no coding.json, which says how rows are coded; restore it"),
        ("cut", r"model.safetensors cannot be read \(.*\); restore it"),
        ("comparison", r"is the folder of a comparison; give that of one of its runs"),
        ("flipped", r"model.safetensors is damaged \(its sum is not that which was written with it\); restore it"),
    ],
)
def test_a_run_that_cannot_be_used_is_one_line_and_nothing_is_written(trained: Any, tmp_path: Path, name: str, says: str) -> None:
    path = changed(trained[0] / "words", tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    for call in (lambda: evaluate(path), lambda: predict(path, str(trained[0] / "bare.csv"), str(tmp_path / "p.csv"))):
        with pytest.raises(UserError, match=says) as error:
            call()
        assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before


def test_rows_that_have_changed_since_are_not_taken_for_the_runs_own(trained: Any, tmp_path: Path) -> None:
    table(tmp_path / "train.csv", range(400))
    mpidml.train(SMALL.with_values({"data": str(tmp_path / "train.csv"), "out": str(tmp_path / "run")}, "test"), quiet=True)
    table(tmp_path / "train.csv", range(3, 403))
    with pytest.raises(UserError, match=r"train.csv: is not what the run in .* learnt from, it has changed since"):
        evaluate(tmp_path / "run")
    mpidml.train(SMALL.with_values({"data": str(tmp_path / "train.csv"), "hold_out": 0.0, "out": str(tmp_path / "all")}, "test"), quiet=True)
    with pytest.raises(UserError, match=r"the run has no test rows of its own \(--hold-out 0\); give rows by --data"):
        evaluate(tmp_path / "all")


def test_a_run_on_arrays_predicts_and_names_what_it_lacks_to_evaluate(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((300, 3))
    y = (x[:, 0] > 0).astype(np.int64)
    mpidml.train(SMALL.with_values({"out": str(tmp_path / "run")}, "test"), data=(x, y), quiet=True)
    with pytest.raises(UserError, match=r"run: the run learnt from arrays that a program handed in, and kept none; give rows by --data"):
        evaluate(tmp_path / "run")
    np.savez(tmp_path / "t.npz", x=x, y=y)
    assert evaluate(tmp_path / "run", data=str(tmp_path / "t.npz"), quiet=True)["accuracy"] > 0.8


def test_predictions_are_whole_or_not_there(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(saved: Any, outputs: Any) -> Any:
        raise OSError("no room")

    monkeypatch.setattr(sys.modules["mpidml.predict"], "_said", fails)
    with pytest.raises(OSError, match="no room"):
        predict(trained[0] / "words", str(trained[0] / "bare.csv"), str(tmp_path / "p.csv"), quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("lines", "names"), [(("+1 1:2", "-1 2:3"), ["-1", "+1"]), (("1 1:2", "-1 2:3"), ["-1", "1"]), (("1 1:2", "0 2:3"), ["0", "1"])])
def test_predictions_have_the_signs_that_stand_in_the_training_file(tmp_path: Path, lines: tuple[str, str], names: list[str]) -> None:
    (tmp_path / "t.svm").write_text("\n".join(lines * 40) + "\n")
    job = Job(data=str(tmp_path / "t.svm"), model="softmax", epochs=5, backend="numpy", out=str(tmp_path / "run"))
    train(job, quiet=True)
    found = predict(job.out, job.data, str(tmp_path / "p.csv"), quiet=True)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert found["classes"] == names and list(rows[0])[1:] == [f"p_{name}" for name in names]
    assert [row["class"] for row in rows] == [line.split()[0] for line in lines * 40], "words of the file, line by line"
    assert [of["name"] for of in evaluate(job.out, quiet=True, write=False)["classes"]] == names
