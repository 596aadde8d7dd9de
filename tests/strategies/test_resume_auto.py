"""`--resume auto` is one line for each start of a job: it begins, goes on, or finds nothing left to do, as the folder says."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.position import Position
from mpidml.runtime import resume, summary
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.outputs import RunFolder
from mpidml.strategies.base import train
from tests.strategies.test_identities import SMALL

NET = "[[layer]]\ntype = 'dense'\nunits = {}\nactivation = 'relu'\n[[layer]]\ntype = 'dense'\n"


def start(comm, folder, steps, **changes):
    """Start the job with one and the same line but for its length."""
    job = SMALL.with_values({"steps": steps, "out": str(folder), "resume": "auto", "checkpoint_every": 4, "wait_limit": 20.0, "deterministic": True, **changes}, "test")
    counted = CountedComm(comm)
    try:
        return train(job, counted, quiet=True)
    finally:
        counted.free()


def clocks(folder):
    return [json.loads(line)["clock"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.mpi
def test_the_same_line_begins_and_goes_on_to_the_bits_of_one_start(comm, mpi_tmp_path):
    whole = start(comm, mpi_tmp_path / "whole", 12)
    start(comm, mpi_tmp_path / "run", 6)
    again = start(comm, mpi_tmp_path / "run", 12)
    assert again["model_sha256"] == whole["model_sha256"] and again["samples"] == whole["samples"]
    before = comm.bcast((mpi_tmp_path / "run" / "config.toml").stat().st_mtime_ns)
    done = start(comm, mpi_tmp_path / "run", 12)
    assert (done["model_sha256"], done["seconds"]) == (again["model_sha256"], again["seconds"]), "a job that comes back after its end has nothing left to do"
    if comm.rank == 0:
        assert clocks(mpi_tmp_path / "run") == list(range(12))
        assert (mpi_tmp_path / "run" / "config.toml").stat().st_mtime_ns == before
        assert "resume" not in (mpi_tmp_path / "run" / "config.toml").read_text()


WAYS = {  # of working, and of coming to an end
    "steps": {"steps": 8},
    "asp": {"steps": 8, "sync": "asp", "deterministic": False},
    "quorum": {"steps": 8, "sync": "quorum", "deterministic": False},
    "dynamic": {"steps": 8, "sync": "ssp:1", "assign": "dynamic", "deterministic": False},
    "target": {"steps": 400, "target": "loss:2.2", "deterministic": False},
    "seconds": {"steps": 0, "seconds": 0.3, "checkpoint_every": 10_000, "deterministic": False},
    "patience": {"steps": 400, "validate": 0.1, "patience": 1, "lr": 5.0},
    "data_parallel": {"steps": 8, "strategy": "data_parallel"},
    "data_parallel to a target": {"steps": 400, "strategy": "data_parallel", "target": "loss:2.2", "deterministic": False},
    "averaging": {"steps": 8, "strategy": "averaging", "deterministic": False},
    "replicas in order": {"steps": 8, "strategy": "hybrid", "grid": "data=1,pipe=1", "sync": "ssp:1", "deterministic": False},
}


@pytest.mark.mpi
@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_ended_between_its_last_checkpoint_and_its_summary_is_written(comm, mpi_tmp_path, way):
    changes = dict(WAYS[way])
    if "grid" in changes:
        changes["grid"] = f"data={comm.size},pipe=1"
        if comm.size == 1:
            return
    run, steps = mpi_tmp_path / "run", changes.pop("steps")
    whole = start(comm, run, steps, **changes)
    if comm.rank == 0:
        for name in ("summary.json", "model.safetensors", "coding.json"):
            (run / name).unlink()
    comm.Barrier()
    again = start(comm, run, steps, **changes)
    for key in ("clocks", "samples", "target_samples", "final_loss"):
        assert again[key] == whole[key], key
    assert again["test_loss"] == pytest.approx(whole["test_loss"], rel=1e-9)
    if way != "averaging":  # the mean of three alike is not the same to the last bit
        assert again["model_sha256"] == whole["model_sha256"]
    if comm.rank == 0:
        assert (run / "summary.json").exists() and (run / "model.safetensors").exists()
    comm.Barrier()
    done = start(comm, run, steps, **changes)
    assert done["seconds"] == again["seconds"], "now nothing is left to do"


def test_a_run_that_goes_on_leaves_no_summary_of_its_former_end(tmp_path, monkeypatch):
    job = Job(steps=4, hidden=(8,), out=str(tmp_path / "run"), resume="auto", checkpoint_every=2, report=False, backend="numpy")
    train(job, quiet=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "write_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(replace(job, steps=8), quiet=True)
    assert not (tmp_path / "run/summary.json").exists(), "nothing says that 4 clocks are all"
    assert train(replace(job, steps=8), quiet=True)["clocks"] == 8


@pytest.mark.mpi
def test_what_was_never_saved_begins_anew_and_a_foreign_run_stays(comm, mpi_tmp_path):
    run, foreign = mpi_tmp_path / "run", mpi_tmp_path / "foreign"
    if comm.rank == 0:  # what a run leaves that is killed before its first checkpoint
        run.mkdir()
        (run / "config.toml").write_text("epochs = 1\n")
        (run / "metrics.jsonl").write_text('{"clock": 0}\n{"clo')
        (run / ".lock").touch()
        foreign.mkdir()
        (foreign / "config.toml").write_text("epochs = 1\n")
        (foreign / "summary.json").write_text("{}")
    comm.Barrier()
    start(comm, run, 6)
    if comm.rank == 0:
        assert clocks(run) == list(range(6))
    with pytest.raises(UserError, match="holds another run"):
        start(comm, foreign, 6)
    assert (foreign / "config.toml").read_text() == "epochs = 1\n"


def test_a_line_that_does_not_fit_what_is_saved_is_refused(tmp_path):
    (tmp_path / "net.toml").write_text(NET.format(8))
    job = Job(model=str(tmp_path / "net.toml"), steps=4, out=str(tmp_path / "run"), resume="auto", checkpoint_every=2, report=False, backend="numpy")
    train(job, quiet=True)
    longer = train(replace(job, steps=6), quiet=True)
    assert longer["samples"] == 6 * 64, "the same net file is the run's own copy"
    (tmp_path / "net.toml").write_text(NET.format(9))
    with pytest.raises(UserError, match=r"^--model: the run in .*net.toml.*; leave it out, or start a new run"):
        train(replace(job, steps=8), quiet=True)
    (tmp_path / "net.toml").write_text(NET.format(8))
    with pytest.raises(UserError, match=r"^--batch: the run in .* has 64"):
        train(replace(job, steps=8, batch=32), quiet=True)


def test_a_run_that_is_going_on_is_not_cleared(tmp_path):
    (tmp_path / "config.toml").write_text("epochs = 1\n")
    other = RunFolder(tmp_path)
    other.lock()
    job = Job(out=str(tmp_path), resume="auto", checkpoint_every=2)
    for _ in range(2):  # the refused one leaves the lock where it is
        with pytest.raises(UserError, match="another run is going on in this folder"):
            resume.found(job)
    assert (tmp_path / "config.toml").exists()
    other.close()
    (tmp_path / ".lock").touch()  # as one leaves it that was killed
    assert resume.found(job).resume == "" and not (tmp_path / "config.toml").exists()


@pytest.mark.parametrize(
    ("text", "locked"),
    [("epochs = 1\n", False), ("title = 'of another program'\n", False), ("title = 'of another program'\n", True), ("half a line", True)],
    ids=["settings of one's own, or a study", "another program's", "another program's beside a lock", "no TOML"],
)
def test_what_no_run_has_left_is_not_cleared(tmp_path, text, locked):
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "points").mkdir()
    if locked:
        (tmp_path / ".lock").touch()
    with pytest.raises(UserError, match=r"holds another run \(config.toml\)"):
        train(Job(out=str(tmp_path), resume="auto", checkpoint_every=2, backend="numpy"), quiet=True)
    assert (tmp_path / "config.toml").read_text() == text


def test_a_run_that_saves_nothing_holds_its_folder_too_until_its_summary_is_there(tmp_path, monkeypatch):
    def meanwhile(folder, name, value):
        with pytest.raises(UserError, match="another run is going on in this folder"):
            resume.found(Job(out=str(folder.path), resume="auto", checkpoint_every=2))
        seen.append(name)
        write_json(folder, name, value)

    seen, write_json = [], RunFolder.write_json
    monkeypatch.setattr(RunFolder, "write_json", meanwhile)
    train(Job(out=str(tmp_path / "run"), steps=2, hidden=(8,), backend="numpy", report=False), quiet=True)
    assert seen[-1] == "summary.json" and not (tmp_path / "run/.lock").exists()


def test_a_file_system_without_locks_is_a_line_and_no_other_run(tmp_path, monkeypatch, capsys):
    def without(file, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("mpidml.runtime.outputs.fcntl.flock", without)
    train(Job(out=str(tmp_path / "run"), steps=2, hidden=(8,), backend="numpy", report=False))
    said = [line for line in capsys.readouterr().out.splitlines() if "has no locks" in line]
    assert said == [f"--out {tmp_path}/run: nothing keeps another run from this folder, whose file system has no locks (Function not implemented)"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"resume": "auto", "checkpoint_every": 5}, "--resume auto: needs --out, the folder in which to go on; give it"),
        ({"resume": "auto", "out": "x"}, "--resume auto: needs --checkpoint-every, without which nothing is saved; give it"),
        ({"requeue": True}, "--requeue: the job's next start would begin anew; give --resume auto, too"),
        ({"requeue": True, "resume": "runs/x", "out": "runs/y"}, "--requeue: the job's next start would go on from runs/x again; give --resume auto"),
    ],
)
def test_what_could_not_go_on_is_refused(values, says):
    with pytest.raises(UserError) as error:
        Job(**values).checked()
    assert str(error.value) == says


@pytest.mark.parametrize(("requeue", "number", "told"), [(True, signal.SIGTERM, True), (True, signal.SIGUSR1, False), (False, signal.SIGTERM, False)])
def test_a_job_that_does_not_come_back_says_so(tmp_path, requeue, number, told):
    """SIGTERM is also what a user's scancel sends, after which nothing is to come back."""
    strategy = SimpleNamespace(job=Job(requeue=requeue), n_workers=2, sampler=SimpleNamespace(clocks_per_epoch=4))
    said = summary.paused(number, strategy, Position(8, (8, 8)), tmp_path)
    assert said.startswith(f"stopped by {number.name}: 8 clocks") and ("does not go back into its queue" in said) == told
