"""A run that is killed at any instant leaves a checkpoint that is whole; one that is asked to end saves first; what is damaged is seen."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpidml.runtime import checkpoint, resume
from mpidml.runtime.launch import mpirun_command, without_launcher
from tests.ranks import ROOT, descendants, mpirun, python
from tests.test_bad_input import run_many, snapshot

JOB = ["-m", "mpidml", "train", "--hidden", "64", "--backend", "numpy", "--wait-limit", "20", "--no-report"]
EVERY, STEPS = 5, 400
LIMIT_SECONDS = 60


def begin(n, words, more=()):
    """Start a run in the background, and return it with its output's file."""
    ready, env = mpirun_command(n, {**os.environ, **dict(more)})
    paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), env.get("PYTHONPATH", "")]))
    command = [*ready, sys.executable, *JOB, "--checkpoint-every", str(EVERY), *map(str, words)]
    return subprocess.Popen(command, env={**env, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alone(words):
    """Start a run in one process in the background, without a launcher."""
    env = without_launcher({**os.environ})
    paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), env.get("PYTHONPATH", "")]))
    command = [sys.executable, *JOB, *map(str, words)]
    return subprocess.Popen(command, env={**env, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def saved(folder):
    """List the checkpoints that claim to be whole."""
    return sorted(p for p in (folder / "checkpoints").glob("[0-9]*")) if (folder / "checkpoints").is_dir() else []


def wait_for(condition):
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.005)


def ranks_of(child):
    """Return the processes that train."""
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in descendants(child.pid)}
    return [pid for pid, of in words.items() if of[0].endswith(sys.executable.rpartition("/")[2].encode()) and b"mpidml" in of]


def is_whole(path):
    return checkpoint.Checkpoint.open(path).wrong(0, 1) == ""


def clocks(folder):
    return [json.loads(line)["clock"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_is_killed_at_any_instant_leaves_a_whole_checkpoint_and_goes_on(tmp_path):
    draw = random.Random(0)
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        child = begin(2, ["--steps", 100_000, "--out", folder])
        try:
            wait_for(lambda folder=folder: saved(folder))
            time.sleep(draw.uniform(0, 0.3))
            for pid in [*ranks_of(child), child.pid]:
                os.kill(pid, signal.SIGKILL)
        finally:
            child.kill()
            child.communicate(timeout=LIMIT_SECONDS)
        assert saved(folder) and all(map(is_whole, saved(folder)))
    done = int(saved(folder)[-1].name)
    result = mpirun(3, [*JOB[:3], "--resume", folder, "--steps", done + 20])
    assert result.code == 0 and f"resumed: {done:,} clocks" in result.out, result
    rows = clocks(folder)  # of a long run not every clock has one
    assert rows == sorted(set(rows)) and rows[-1] == done + 19
    assert json.loads((folder / "summary.json").read_text())["samples"] == (done + 20) * 64
    assert not list((folder / "checkpoints").glob(".*")), "what was half written is gone"


@pytest.mark.openmpi
@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, "all"), (signal.SIGUSR1, "all"), (signal.SIGUSR1, "the last")])
def test_a_signal_saves_the_run_and_ends_it_well(tmp_path, number, to):
    child = begin(3, ["--steps", 1_000_000, "--checkpoint-every", 1_000_000, "--sync", "ssp:2", "--out", tmp_path / "run"])
    try:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and clocks(tmp_path / "run"))
        ranks = ranks_of(child)
        for pid in ranks if to == "all" else ranks[-1:]:
            os.kill(pid, number)
        out, _ = child.communicate(timeout=LIMIT_SECONDS)
    finally:
        child.kill()
    assert child.returncode == 0 and f"stopped by {number.name}: " in out and f"train --resume {tmp_path / 'run'}" in out, out
    assert len(saved(tmp_path / "run")) == 1 and is_whole(saved(tmp_path / "run")[0])
    assert not (tmp_path / "run" / "summary.json").exists() and "Traceback" not in out


LATE = """#!/bin/bash
echo "$@" >> {folder}/requeued
for task in $(ls /proc/[0-9]*/stat); do
    read -r pid name state parent rest < "$task"
    [ "$parent" = "$(cut -d " " -f 4 "/proc/$PPID/stat")" ] && [ "$pid" != "$PPID" ] && kill -USR1 "$pid"
done 2> /dev/null
sleep 0.5
"""


def test_a_rank_that_the_signal_reaches_once_all_have_heard_of_it_keeps_no_job_from_its_queue(tmp_path):
    """Slurm signals node after node: `scontrol`, which rank 0 calls when all is saved, signals the others here."""
    (tmp_path / "scontrol").write_text(LATE.format(folder=tmp_path))
    (tmp_path / "scontrol").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    child = begin(2, ["--steps", 1_000_000, "--checkpoint-every", 1_000_000, "--resume", "auto", "--requeue", "--out", tmp_path / "run"], env)
    try:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and clocks(tmp_path / "run"))
        os.kill(ranks_of(child)[0], signal.SIGUSR1)
        out, _ = child.communicate(timeout=LIMIT_SECONDS)
    finally:
        child.kill()
    assert child.returncode == 0 and "stopped by SIGUSR1: " in out and (tmp_path / "requeued").read_text() == "requeue 7\n", out


def trained(folder, steps=12):
    result = python([*JOB, "--checkpoint-every", EVERY, "--steps", steps, "--out", folder])
    assert result.code == 0, result
    return folder


@pytest.mark.parametrize(("n", "every"), [(1, EVERY), (2, EVERY), (1, 1_000_000)])
def test_a_run_that_is_interrupted_says_from_where_it_can_go_on(tmp_path, n, every):
    child = begin(n, ["--steps", 1_000_000, "--checkpoint-every", every, "--out", tmp_path / "run"])
    try:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and clocks(tmp_path / "run") and (every > EVERY or saved(tmp_path / "run")))
        os.kill(child.pid, signal.SIGINT)
        out, _ = child.communicate(timeout=LIMIT_SECONDS)
    finally:
        child.kill()
    assert child.returncode != 0 and "Traceback" not in out, out
    if every > EVERY:
        assert "interrupted: nothing is saved yet\n" in out
    else:
        newest = int(saved(tmp_path / "run")[-1].name)
        assert f"interrupted: go on from clock {newest:,}, the last that is saved, with: python -m mpidml train --resume {tmp_path / 'run'}\n" in out, out


SAVES = ["--checkpoint-every", str(EVERY)]


@pytest.mark.parametrize(("number", "more"), [(signal.SIGTERM, []), (signal.SIGINT, []), (signal.SIGTERM, SAVES), (signal.SIGINT, SAVES)])
def test_one_process_that_a_signal_ends_says_so_and_saves_what_ranks_save(tmp_path, number, more):
    folder = tmp_path / "run"
    child = alone(["--steps", 1_000_000, *more, "--out", folder])
    try:
        wait_for(lambda: (folder / "metrics.jsonl").exists() and clocks(folder) and (not more or saved(folder)))
        os.kill(child.pid, number)
        out, err = child.communicate(timeout=LIMIT_SECONDS)
    finally:
        child.kill()
    if number == signal.SIGTERM and more:
        assert child.returncode == 0 and err == "" and "stopped by SIGTERM: " in out and f"train --resume {folder}" in out, (out, err)
    else:
        assert (child.returncode, err) == (128 + number, f"mpidml: ended by {number.name}\n"), (out, err)
        assert bool(more) == (f", the last that is saved, with: python -m mpidml train --resume {folder}\n" in out), out
    assert bool(saved(folder)) == bool(more) and all(map(is_whole, saved(folder))) and not (folder / "summary.json").exists()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of 12 clocks with two checkpoints, to be copied."""
    return trained(tmp_path_factory.mktemp("first") / "run")


@pytest.fixture
def ended(first, tmp_path):
    """A copy of that run for one test alone."""
    return Path(shutil.copytree(first, tmp_path / "run"))


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_seen_and_the_one_before_is_taken(ended):
    folder = ended
    assert [p.name for p in saved(folder)] == ["000000000010", "000000000012"]
    spoil(saved(folder)[-1] / "rank-0.safetensors")
    result = mpirun(2, [*JOB[:3], "--resume", folder, "--steps", 30, "--checkpoint-every", 2, "--keep-checkpoints", 50])
    assert result.code == 0 and "000000000012 is damaged (rank-0.safetensors does not sum up to its SHA-256): the one before is taken" in result.out, result
    assert "resumed: 10 clocks" in result.out and clocks(folder) == list(range(30))
    assert [int(p.name) for p in saved(folder)] == list(range(10, 31, 2)) and all(map(is_whole, saved(folder)))


DAMAGED = {  # what is done to a run -> what the line says
    "data": (lambda folder: [spoil(p / "rank-0.safetensors") for p in saved(folder)], "no checkpoint is whole: "),
    "manifest": (lambda folder: [(p / "manifest.json").write_text("{") for p in saved(folder)], "manifest.json cannot be read"),
    "empty": (lambda folder: [(p / "rank-0.safetensors").write_bytes(b"") for p in saved(folder)], "rank-0.safetensors has 0 bytes, "),
    "missing": (lambda folder: [os.unlink(p / "rank-0.safetensors") for p in saved(folder)], "rank-0.safetensors cannot be read (No such file"),
    "none": (lambda folder: [[q.unlink() for q in p.iterdir()] and p.rmdir() for p in saved(folder)], "no checkpoint is whole: there is none"),
    "no run": (lambda folder: (folder / "config.toml").unlink(), "holds no run (no config.toml)"),
    "metrics": (lambda folder: (folder / "metrics.jsonl").write_text(""), "metrics.jsonl has 0 rows, the checkpoint knows of 12"),
    "no metrics": (lambda folder: (folder / "metrics.jsonl").unlink(), "metrics.jsonl has 0 rows, the checkpoint knows of 12"),
}
IMPOSSIBLE = {  # words -> what the line says
    "--resume nowhere": "--resume nowhere: holds no run",
    "--checkpoint-every -1": "--checkpoint-every -1: is below 0",
    "--keep-checkpoints 3": "--keep-checkpoints 3: does nothing without --checkpoint-every",
    "--keep-checkpoints 0 --checkpoint-every 5": "--keep-checkpoints 0: is below 1",
}


@pytest.fixture(scope="module")
def refused(first, tmp_path_factory):
    """Run each command line in a process of its own: name -> its result; none changes anything."""
    folder = tmp_path_factory.mktemp("refused")
    argvs = {}
    for name, (harm, _) in DAMAGED.items():
        harm(Path(shutil.copytree(first, folder / name)))
        argvs[name] = ["train", "--resume", str(folder / name), "--steps", "30"]
    argvs |= {words: [*JOB[2:], *words.split(), "--out", str(folder / "run")] for words in IMPOSSIBLE}
    before = snapshot(folder)
    found = run_many(tmp_path_factory.mktemp("jobs") / "jobs.json", [(argv, {}) for argv in argvs.values()])
    assert snapshot(folder) == before
    return dict(zip(argvs, found, strict=True))


@pytest.mark.parametrize("name", [*DAMAGED, *IMPOSSIBLE])
def test_what_cannot_go_on_is_one_line_and_changes_nothing(refused, name):
    result, says = refused[name], IMPOSSIBLE.get(name) or DAMAGED[name][1]
    assert result.code == 2 and says in result.err and result.err.count("\n") == 1 and result.out == "", result


def test_a_checkpoint_of_before_the_first_row_needs_no_file_of_rows(ended):
    assert len(resume.metrics(ended, 12)) == 12
    (ended / "metrics.jsonl").unlink()
    assert resume.metrics(ended, 0) == []


FULL = """
import resource, signal
from mpidml.sync.base import SyncPolicy


class Full(SyncPolicy):
    bound = 1

    def oldest_readable(self, clock, worker=-1, view=None):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        return clock - 1
"""


def test_a_full_disk_ends_the_run_with_one_line_and_the_last_checkpoint_stays(ended, tmp_path):
    """A limit on the size of files, set once the run is under way, stands for the disk: what is written beyond it fails."""
    folder = ended
    (tmp_path / "full.py").write_text(FULL)
    result = python([*JOB[:3], "--resume", folder, "--steps", "100", "--sync", tmp_path / "full.py"])
    assert result.code == 2 and "cannot be written" in result.err and result.err.count("\n") == 1, result
    assert [p.name for p in saved(folder)] == ["000000000010", "000000000012"] and all(map(is_whole, saved(folder)))


def test_two_runs_in_one_folder_are_refused(tmp_path):
    child = begin(1, ["--steps", 1_000_000, "--checkpoint-every", 1_000_000, "--out", tmp_path / "run"])
    try:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and clocks(tmp_path / "run"))
        os.kill(ranks_of(child)[0], signal.SIGUSR1)
        child.communicate(timeout=LIMIT_SECONDS)
        child = subprocess.Popen(
            [sys.executable, *JOB[:3], "--resume", tmp_path / "run", "--steps", "1000000"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        n = len(clocks(tmp_path / "run"))
        wait_for(lambda: len(clocks(tmp_path / "run")) > n)
        second = python([*JOB[:3], "--resume", tmp_path / "run", "--steps", "1000000"])
        assert second.code == 2 and "another run is going on in this folder" in second.err and second.err.count("\n") == 1, second
    finally:
        child.kill()
        child.wait(LIMIT_SECONDS)
    assert python([*JOB[:3], "--resume", tmp_path / "run", "--steps", clocks(tmp_path / "run")[-1] + 50]).code == 0, "one that was killed locks nothing"
