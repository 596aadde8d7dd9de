"""What Slurm gave is read from its variables alone; what does not fit is named with its remedy; a job that will end too soon is foreseen."""

from __future__ import annotations

import time

import pytest

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.runtime import slurm
from mpidml.runtime.slurm import Allocation, Deadline, allocation, problems
from mpidml.strategies.base import train

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_CPUS_PER_TASK": "2", "SLURM_MEM_PER_NODE": "500"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_TASKS_PER_NODE": "4", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "4"}
RANK = {"blas_threads": 1, "numba_threads": 1, "resident_nbytes": 100 << 20}


@pytest.mark.parametrize(
    ("env", "given", "words"),
    [
        ({}, None, ""),
        (STEP, Allocation("7", "n[1-4]", (2, 2, 2, 1), 2, 500 << 20), "job 7: 7 task(s) on 4 node(s) n[1-4], 1 to 2 a node, 2 core(s) a task, 500 MiB a node"),
        (BATCH, Allocation("7", "n1", (4,), 0, 0), "job 7: 4 task(s) on 1 node(s) n1, 4 a node"),
        (STEP | BATCH | {"HYDI_CONTROL_FD": "9"}, Allocation("7", "n1", (4,), 2, 500 << 20), "4 task(s) on 1 node(s) n1, 4 a node, 2 core(s) a task, 500 MiB a node"),
        (STEP | BATCH | {"OMPI_COMM_WORLD_RANK": "0"}, Allocation("7", "n1", (4,), 2, 500 << 20), "500 MiB a node"),  # the step is the launcher's own
        (BATCH | {"SLURM_CPUS_PER_TASK": "2", "SLURM_MEM_PER_CPU": "100"}, Allocation("7", "n1", (4,), 2, 800 << 20), "4 a node, 2 core(s) a task, 800 MiB a node"),
    ],
)
def test_what_slurm_gave_is_read_from_its_variables(env, given, words):
    found = allocation(env)
    assert found == given and (found is None or found.words().endswith(words))


@pytest.mark.parametrize(
    ("given", "records", "memory", "problem", "remedy"),
    [
        (Allocation("7", "n1", (4,), 1, 0), [RANK] * 2, 0, "2 rank(s) run where Slurm gave 4 task(s)", "mpirun -n $SLURM_NTASKS"),
        (Allocation("7", "n1", (1,), 0, 0), [RANK] * 2, 0, "2 rank(s) run where Slurm gave 1 task(s)", "--ntasks"),
        (Allocation("7", "n1", (1,), 4, 0), [RANK], 0, "a rank has 1 thread(s), Slurm gave a task 4 core(s)", "--cpus-per-task=1 and more tasks, or export"),
        (Allocation("7", "n1", (1,), 2, 0), [RANK | {"numba_threads": 8}], 0, "a rank has 8 thread(s), Slurm gave a task 2 core(s)", "export OPENBLAS_NUM_THREADS=2"),
        (Allocation("7", "n1", (2,), 1, 150 << 20), [RANK] * 2, 0, "2 rank(s) take 200 MiB of a node before they have data, Slurm gave 150 MiB", "--mem=400M"),
        (Allocation("7", "n1", (1,), 1, 500 << 20), [RANK], 1 << 30, "data may take 1024 MiB of a node (memory), Slurm gave 500 MiB", "lower memory"),
    ],
)
def test_each_thing_that_does_not_fit_is_named_once_with_its_remedy(given, records, memory, problem, remedy):
    ((said, cure),) = problems(given, records, memory)
    assert problem in said and remedy in cure


def test_a_run_that_takes_fewer_ranks_than_there_are_tasks_says_so_at_its_start():
    line = slurm.unused(BATCH, 1)
    assert line.startswith("job 7: has 4 task(s), and this run takes 1; to take all, start it by srun") and line.index("\n") == len(line) - 1
    assert not slurm.unused(BATCH, 4) and not slurm.unused(BATCH, 8) and not slurm.unused({}, 1)
    assert not slurm.unused({**BATCH, "SLURM_STEP_TASKS_PER_NODE": "1"}, 1)  # a step of one task
    assert not slurm.unused({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "x", "SLURM_CPUS_PER_TASK": "x"}, 1)


def test_what_fits_is_no_problem():
    assert problems(Allocation("7", "n1", (2,), 1, 500 << 20), [RANK] * 2, 100 << 20) == []
    assert problems(Allocation("7", "n1", (2,), 0, 0), [RANK] * 2, 100 << 20) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30:00", 1800), ("1:00:05", 3605), ("2-03:00:00", 183600), ("0:09", 9), ("UNLIMITED", None), ("INVALID", None), ("", None), ("NOT_SET", None)],
)
def test_the_time_that_is_left_is_read_as_slurm_writes_it(text, seconds):
    assert slurm.of_clock(text) == seconds


def test_the_end_of_the_job_is_told_by_the_environment_or_by_squeue(tmp_path, monkeypatch):
    assert slurm.seconds_left({}) is None
    assert slurm.seconds_left({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 100)}) == pytest.approx(100, abs=30)
    (tmp_path / "squeue").write_text('#!/bin/sh\n[ "$*" = "--noheader --jobs=7 --Format=TimeLeft" ] && echo "10:00               "\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.seconds_left({"SLURM_JOB_ID": "7"}) == pytest.approx(600, abs=30)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert slurm.seconds_left({"SLURM_JOB_ID": "7"}) == pytest.approx(600, abs=30), "asked once"
    assert slurm.seconds_left({"SLURM_JOB_ID": "8"}) is None


def soon(seconds):
    return {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + seconds)}


def test_a_run_that_cannot_end_in_its_job_and_saves_nothing_is_refused():
    with pytest.raises(UserError, match=r"^--seconds 9000: this Slurm job ends in \d+ s, before the run, and nothing would be saved; give "):
        slurm.check(Job(seconds=9000), soon(600))
    assert slurm.check(Job(seconds=9000, checkpoint_every=5), soon(600)) > 500
    assert slurm.check(Job(seconds=60), soon(600)) > 500
    for ends_before in ({"target": "0.97"}, {"steps": 10}, {"epochs": 1}, {"patience": 3, "validate": 0.1}):  # an upper bound is no end
        assert slurm.check(Job(seconds=9000, **ends_before), soon(600)) > 500
    assert slurm.check(Job(seconds=9000), {}) is None


def test_a_queue_is_only_in_slurm():
    with pytest.raises(UserError, match=r"--requeue: this process is not in a Slurm job .*; leave it out, or start by sbatch"):
        slurm.check(Job(requeue=True, resume="auto", out="x", checkpoint_every=5), {})


@pytest.mark.parametrize(
    ("every", "n_clocks", "limit", "ends", "says"),
    [
        (100, 1000, 0, 50, "time limit: at 1 s a clock this Slurm job ends 50 s before the first checkpoint; give --checkpoint-every 20, and --signal=USR1@120"),
        (100, 1000, 0, 110, ""),
        (0, 1000, 0, 500, "this Slurm job ends 500 s before the run, and nothing is saved; give --checkpoint-every, or a longer --time to sbatch"),
        (0, 1000, 0, 1100, ""),
        (100, 50, 0, 60, ""),  # the run ends before
        (100, 50, 0, 40, "ends 10 s before the first checkpoint"),
        (0, 10**12, 300, 200, "ends 100 s before the run, and nothing is saved"),  # --seconds 300
        (0, 10**12, 300, 320, ""),
    ],
)
def test_a_job_that_ends_too_soon_is_foreseen_from_its_first_clocks_and_told_once(every, n_clocks, limit, ends, says):
    """`ends`: seconds after the run's start; the look comes after 10 clocks of a second each."""
    deadline = Deadline(1000.0 + ends)
    deadline.expect(every, n_clocks, limit)
    assert deadline.told(9, 9.0, 1009.0) == "" == deadline.told(10, 0.1, 1000.1), "nothing is foreseen from too little"
    told = deadline.told(10, 10.0, 1010.0)
    assert (says in told) if says else told == ""
    assert deadline.told(11, 11.0, 1011.0) == ""


def test_a_job_goes_back_into_its_queue_by_its_number_and_a_refusal_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$2" = 7 ] || {{ echo "Invalid job\nid" >&2; exit 1; }}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    slurm.requeue({"SLURM_JOB_ID": "7"})
    with pytest.raises(UserError, match=r"^--requeue: scontrol requeue 8 failed \(Invalid job id\); submit the script with the same --out"):
        slurm.requeue({"SLURM_JOB_ID": "8"})
    assert (tmp_path / "asked").read_text() == "requeue 7\nrequeue 8\n"


def test_a_task_of_an_array_asks_and_goes_back_by_itself_not_with_the_whole_array(tmp_path, monkeypatch):
    """One task's SLURM_JOB_ID is the array's own number, under which `squeue` lists, and `scontrol requeue` restarts, every task."""
    task = {"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "squeue").write_text('#!/bin/sh\n[ "$2" = "--jobs=70_3" ] && echo 10:00 || printf "10:00\\n20:00\\n"\n')
    for name in ("scontrol", "squeue"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    slurm.requeue(task)
    assert (tmp_path / "asked").read_text() == "requeue 70_3\n"
    assert slurm.seconds_left({"SLURM_JOB_ID": "70"}) is None and slurm.seconds_left(task) == pytest.approx(600, abs=30)


@pytest.mark.parametrize("every", [0, 10**6])
def test_a_run_tells_once_that_its_job_ends_too_soon(tmp_path, monkeypatch, capsys, every):
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 100))
    train(Job(hidden=(16,), backend="numpy", steps=3000, checkpoint_every=every, report=False, out=str(tmp_path / "run")))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time limit: ")]
    assert len(said) == 1 and ("before the first checkpoint" if every else "before the run, and nothing is saved") in said[0]
