"""`python -m mpidml compare` as users start it: one table, one plot, a folder for each run, the same start for all."""

from __future__ import annotations

import importlib
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.ranks import mpirun, python
from tests.test_bad_input import run_many

COMPARE = ("-m", "mpidml", "compare")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Compare three policies on three ranks: (folder, what was said)."""
    out = tmp_path_factory.mktemp("compared") / "run"
    result = mpirun(3, [*COMPARE, "--sync", "bsp,ssp:2,quorum:2", "--target", "0.9", "--epochs", "8", "--hidden", "64", "--backend", "numpy", "--no-report", "--out", out])
    assert result.code == 0 and result.err == "", result
    return out, result.out


def test_the_first_row_is_one_process_and_each_variant_has_one(compared):
    out, said = compared
    rows = json.loads((out / "compare.json").read_text())
    assert [row["variant"] for row in rows] == ["one process", "bsp", "ssp:2", "quorum:2"]
    assert [row["ranks"] for row in rows] == [1, 3, 3, 3]
    assert all(row["seconds_to_target"] > 0 and row["samples_to_target"] > 0 for row in rows)
    assert [p.name for p in out.rglob("*.png")] == ["compare.png"]
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for name in ("one-process", "bsp", "ssp-2", "quorum-2"):
        summary = json.loads((out / name / "summary.json").read_text())
        row = next(row for row in rows if row["variant"] == name.replace("-", " " if name.startswith("one") else ":"))
        assert summary.items() <= row.items()
    lines = said.splitlines()
    heads = [line for line in lines if re.match(r"\d/4  ", line)]
    assert heads == ["1/4  one process (rank 0 alone)", "2/4  bsp", "3/4  ssp:2", "4/4  quorum:2"]
    assert sum(line.startswith(("one process ", "bsp ", "ssp:2 ", "quorum:2 ")) for line in lines) >= 4
    assert re.search(r"one process is (faster|slower|as fast)", said), "whether one rank is faster is said plainly"


def test_variants_of_one_name_have_a_folder_each(tmp_path):
    policy = "from mpidml.sync.ssp import Ssp\n\n\nclass Mine(Ssp):\n    pass\n"
    (tmp_path / "sub").mkdir()
    for path in (tmp_path / "mine.py", tmp_path / "sub" / "mine.py"):
        path.write_text(policy)
    words = ["--sync", f"{tmp_path}/mine.py:2,{tmp_path}/sub/mine.py:2", "--steps", "5", "--hidden", "8", "--backend", "numpy", "--out", tmp_path / "run"]
    result = python([*COMPARE, *words])
    assert result.code == 0, result
    assert {p.name for p in (tmp_path / "run").iterdir() if p.is_dir()} == {"one-process", "mine.py-2", "mine.py-2-2"}
    assert len(list((tmp_path / "run").rglob("report.png"))) == 3


def test_all_variants_start_alike_and_bsp_learns_what_one_process_learns(compared):
    """Bsp on three ranks is one process within rounding, so up to the target both see the same samples."""
    rows = json.loads((compared[0] / "compare.json").read_text())
    assert rows[0]["samples_to_target"] == rows[1]["samples_to_target"]
    losses = [json.loads((compared[0] / name / "metrics.jsonl").read_text().splitlines()[0])["loss"] for name in ("one-process", "bsp")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_same_without_mpirun_and_with_an_unreachable_target(tmp_path):
    result = python([*COMPARE, "--sync", "bsp,asp", "--target", "1.0", "--epochs", "1", "--hidden", "8", "--backend", "numpy", "--no-report", "--out", tmp_path / "run"])
    assert result.code == 0 and result.err == "", result
    rows = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [row["seconds_to_target"] for row in rows] == [None] * 3
    assert "never" in result.out and all(row["epochs"] == 1 for row in rows), "ends at its limit, and says so"
    values = [load_file(tmp_path / "run" / name / "model.safetensors") for name in ("one-process", "bsp")]
    assert all(np.array_equal(values[0][key], values[1][key]) for key in values[0])


REFUSED = {  # words -> what the line says, by one process or under mpirun
    "--sync bsp,spp:2": ("sync: there is no 'spp'", 1),
    "--sync bsp,quorum:4": ("--sync quorum:4: a quorum of 4 gradients needs as many workers, there are 3", 3),
    "--sync bsp,asp --deterministic": ("--deterministic: asp cannot repeat", 3),
    "--hold-out 0.2,0.3": ("compare: hold_out: is the same for all that are compared", 1),
    "--epochs 1,2": ("compare: epochs: is the same for all that are compared", 1),
    "--data nowhere.npz --sync bsp,asp": ("nowhere.npz: there is no such file", 3),
    "--target 0.9 --hold-out 0 --sync bsp,asp": ("--target 0.9: there are no test rows", 1),
    "--servers 1,3": ("--servers 3: 3 server(s) leave no worker on 3 ranks", 3),
    "--snyc bsp,asp": ("compare: there is no option '--snyc'", 1),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Run what one process refuses, each in a process of its own: words -> its result; none writes anything."""
    folder = tmp_path_factory.mktemp("refused")
    alone = [words for words, (_, n) in REFUSED.items() if n == 1]
    argvs = [(["compare", *words.split(), "--backend", "numpy", "--out", str(folder / "run")], {}) for words in alone]
    found = run_many(tmp_path_factory.mktemp("jobs") / "jobs.json", argvs)
    assert list(folder.iterdir()) == []
    return dict(zip(alone, found, strict=True))


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_compared_is_one_line_before_the_first_run(refused, tmp_path, words):
    says, n = REFUSED[words]
    result = refused[words] if n == 1 else mpirun(n, [*COMPARE, *words.split(), "--backend", "numpy", "--out", tmp_path / "run"])
    ours = [line for line in result.err.splitlines() if says in line]
    assert result.code == 2 and len(ours) == 1 and "Traceback" not in result.err, result
    assert result.out == "" and not (tmp_path / "run").exists()


def test_strategies_and_schedules_are_compared_with_one_process(tmp_path):
    words = ["--strategy", "hybrid,data_parallel", "--grid", "pipe=2", "--schedule", "gpipe,pipedream", "--hidden", "8", "--backend", "numpy", "--steps", "4"]
    result = mpirun(2, [*COMPARE, *words, "--no-report", "--out", tmp_path / "run"])
    assert result.code == 0 and result.err == "", result
    rows = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [row["variant"] for row in rows] == ["one process", "hybrid, schedule gpipe", "hybrid, schedule pipedream", "data_parallel"]
    assert [row["ranks"] for row in rows] == [1, 2, 2, 2] and {row["samples"] for row in rows} == {256}
    assert rows[1]["test_loss"] == pytest.approx(rows[0]["test_loss"], rel=1e-4) and rows[3]["test_loss"] == pytest.approx(rows[0]["test_loss"], rel=1e-4)


def test_a_simulation_of_stages_is_refused_with_what_knows_them():
    result = python(["-m", "mpidml", "simulate", "--strategy", "pipeline", "--workers", "4", "--compute", "1e-3"])
    assert result.code == 2 and result.err.count("\n") == 1 and "python -m mpidml schedule" in result.err, result


@pytest.mark.parametrize("command", ["compare", "simulate"])
def test_a_variant_whose_loss_does_not_fit_ends_before_anything_is_written(tmp_path, command):
    more = ["--learn", "--workers", "2", "--compute", "1e-3", "--sync", "bsp"] if command == "simulate" else ["--sync", "bsp"]
    argv = ["-m", "mpidml", command, *more, "--loss", "cross_entropy,huber", "--class-weights", "balanced", "--steps", "3", "--backend", "numpy"]
    result = python([*argv, "--out", str(tmp_path / "run")])
    assert result.code == 2 and "--class-weights: does nothing in --loss huber" in result.err, result
    assert not (tmp_path / "run").exists()


def test_each_device_has_its_slow_start_before_the_first_run(monkeypatch):
    module = importlib.import_module("mpidml.compare")
    begun = []

    def recorded(job, *given, **more):
        begun.append((job.device, job.steps))
        if job.steps != module.WARM_UP_CLOCKS:
            raise InterruptedError("the first run")

    monkeypatch.setattr(module, "train", recorded)
    with pytest.raises(InterruptedError, match="the first run"):
        module.compare({"device": "auto,cpu", "sync": "bsp,ssp:2", "steps": 5, "hidden": (8,)}, quiet=True, write=False)
    assert begun == [("auto", module.WARM_UP_CLOCKS), ("cpu", module.WARM_UP_CLOCKS), ("auto", 5)]
