"""When one rank cannot go on, the job ends soon, with one report and a code that is not 0, and leaves no process behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from mpidml.runtime.launch import find_mpirun, flavour, mpirun_command
from tests.ranks import ROOT, descendants

pytestmark = pytest.mark.openmpi
N = 3
END_SECONDS = 10
START_SECONDS = 60

# Each rank tells its process and then, once something has gone wrong on purpose, when.
SCRIPT = """
import os, signal, sys, time
import numpy as np
import mpidml


def main(tables):
    w = tables["w"]
    for clock in range(10**9):
        if clock == 5:
            print("training\\n", end="", flush=True)
        w.pull().wait()
        w.push(np.ones((6, 2)))
        if tables.worker == 1 and clock == 20:
            FAULT
        tables.clock()


print(f"rank {os.getpid()}\\n", end="", flush=True)
mpidml.run_tables(main, {"w": (6, 2)}, sync="ssp:2", servers=sys.argv[1], wait_limit=float(sys.argv[2]))
"""
POLICY = """
import os
from mpidml.sync.base import SyncPolicy


class Failing(SyncPolicy):
    def __init__(self, clock=5):
        self.bound, self.clock = 1, clock
        print(f"rank {os.getpid()}\\ntraining\\n", end="", flush=True)

    def oldest_readable(self, clock, worker=-1, view=None):
        if view is not None and clock == self.clock and "1" in (os.environ.get("PMI_RANK"), os.environ.get("OMPI_COMM_WORLD_RANK")):
            print("fault\\n", end="", flush=True)
            raise ArithmeticError("the rule of this policy fails on a server")
        return clock - self.bound
"""


class Ended(NamedTuple):
    """What a job left: exit code, outputs, seconds from its fault to its end, and its processes that were still there afterwards."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[int]


def run(args, act=None, start=None):
    """Start N ranks, here or by `start`; let `act(launcher, pids)` do harm in the middle of the training, or wait for the harm that the program announces."""
    args, env = [str(arg) for arg in args], {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    if start is None:
        words, env = mpirun_command(N, env)
        words += [sys.executable, *args]
    else:
        words, env = start(args, env)
    said, began = [], None
    with subprocess.Popen(
        words,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        errors = []
        reader = threading.Thread(target=lambda: errors.append(child.stderr.read()))
        reader.start()
        guard = threading.Timer(START_SECONDS, os.killpg, (child.pid, signal.SIGKILL))
        guard.start()
        ranks, family = [], []
        for line in child.stdout:
            said.append(line)
            ranks += [int(pid) for pid in re.findall(r"^rank (\d+)", line)]
            if line == "fault\n":
                began = time.monotonic()
            if len(ranks) == N and not family:
                family = [child.pid, *descendants(child.pid)]
            if act is not None and began is None and said.count("training\n") == N:
                began = time.monotonic()
                act(child.pid, ranks)
        code = child.wait()
        ended = time.monotonic()
        reader.join()
        guard.cancel()
    assert began is not None and set(ranks) < set(family), f"no harm was done: exit code {code}\n{errors[0]}"
    return Ended(code, "".join(said), errors[0], ended - began, [pid for pid in family if alive(pid)])


def alive(pid):
    """Tell whether a process is still there a second later; one that only waits to be fetched by its parent is not."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.01)
    return True


def check(ended):
    """Fail unless the job ended soon, with a code that is not 0, and wholly."""
    assert ended.code != 0, ended
    assert ended.seconds < END_SECONDS, ended
    assert ended.left == [], ended


@pytest.fixture
def script(tmp_path):
    """Write the script in which worker 1 meets `fault` in the middle of clock 20."""

    def write(fault="pass"):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.replace("FAULT", f'print("fault\\n", end="", flush=True); {fault}' if fault != "pass" else fault))
        return path

    return write


def test_an_exception_of_a_script_ends_all_ranks_with_its_traceback_once(script):
    ended = run([script("raise ZeroDivisionError('in the middle of clock 20')"), "colocated", 300])
    check(ended)
    assert ended.err.count("Traceback (most recent call last)") == 1
    assert "[rank 1/3] ZeroDivisionError: in the middle of clock 20" in ended.err and "in main\n" in ended.err


def test_an_exception_of_a_policy_on_a_server_ends_the_training_with_its_traceback_once(tmp_path):
    (tmp_path / "failing.py").write_text(POLICY)
    argv = ["--sync", f"{tmp_path}/failing.py", "--transport", "mpi", "--hidden", "8", "--backend", "numpy", "--out", tmp_path / "run"]
    ended = run(["-m", "mpidml", "train", *argv])
    check(ended)
    assert ended.err.count("Traceback (most recent call last)") == 1
    assert "[rank 1/3] ArithmeticError: the rule of this policy fails on a server" in ended.err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert {path.name for path in (tmp_path / "run").glob(".*")} <= {".lock"}  # free for the next


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_killed_ends_the_others(script, rank):
    check(run([script(), "colocated", 300], lambda launcher, ranks: os.kill(ranks[rank], signal.SIGKILL)))


def test_a_rank_that_kills_itself_ends_the_others(script):
    check(run([script("os.kill(os.getpid(), signal.SIGKILL)"), "colocated", 300]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_all_ranks(script, number):
    ended = run([script(), "colocated", 300], lambda launcher, ranks: os.kill(launcher, number))
    check(ended)
    assert ended.code in (128 + number, 1) and "Traceback" not in ended.err, ended  # 1: a launcher that keeps the code to itself
    n_told = ended.err.count(f"mpidml: ended by {number.name}\n")
    assert n_told == 1 or (n_told == 0 and flavour(find_mpirun(os.environ)) == "openmpi"), ended.err  # whose launcher hands nothing on any more


@pytest.mark.parametrize(
    ("servers", "behind"), [("1", r"worker 1 is at clock \d+ and last spoke"), ("colocated", r"(worker|server\(s\)) ([02], )?1")]
)
def test_a_worker_that_is_frozen_is_named_with_the_read_that_waits_for_it(script, servers, behind):
    ended = run([script("time.sleep(99)"), servers, 1])
    check(ended)
    assert ended.err.count("Traceback (most recent call last)") == 1
    reports = [line for line in ended.err.splitlines() if line.startswith("[rank ") and "WaitTimeout" in line]
    assert len(reports) == 1
    report = reports[0]
    assert "table w: " in report and re.search(behind, report) and "the limit is 1 s" in report, report
    assert re.search(r"clock \d+", report) and re.search(r"since \d+\.\d s", report)
