"""When one rank of a grid cannot go on, whatever its place, the job ends soon, with one report that names the place."""

import re

import pytest

from tests import test_faults
from tests.test_faults import check

pytestmark = pytest.mark.openmpi
# Descend, and on one rank do harm at clock 20.
LINK = """
import os, signal, time
from mpidml.optim.base import Link

RANK = next(os.environ[name] for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK") if name in os.environ)
print(f"rank {os.getpid()}\\n", end="", flush=True)


class Harm(Link):
    def transform(self, backend, g, state, w, step, memory=1.0):
        if step == 20 and RANK == "WHO":
            print("fault\\n", end="", flush=True)
            FAULT

    def apply(self, backend, w, out, g, state, rate, step, memory=1.0):
        self.transform(backend, g, state, w, step)
        out[...] = w - rate * g

    descends = True
"""
PLACES = [  # grid, schedule, links before, the rank that is harmed, its name
    ("pipe=3", "one_f_one_b", "", 0, "[rank 0/3 pipe 0]"),
    ("pipe=3", "zero_bubble", "clip:1+", 2, "[rank 2/3 pipe 2]"),
    ("pipe=3", "one_f_one_b", "", 1, "[rank 1/3 pipe 1]"),
    ("tensor=3", "one_f_one_b", "clip:1+", 1, "[rank 1/3 tensor 1]"),
    ("data=2,pipe=2", "one_f_one_b", "", 3, "[rank 3/4 data 1 pipe 1]"),
]


def train(tmp_path, monkeypatch, place, fault, wait_limit=300.0):
    """Train on a grid until `fault` happens in a place."""
    grid, schedule, before, rank, _ = place
    path = tmp_path / "harm.py"
    path.write_text(LINK.replace("WHO", str(rank)).replace("FAULT", fault))
    n = 4 if "=2," in grid else 3
    monkeypatch.setattr(test_faults, "N", n)
    words = ["--strategy", "hybrid", "--grid", grid, "--schedule", schedule, "--optimizer", f"{before}{path}", "--hidden", "8,8,8,8", "--backend", "numpy"]
    words += ["--wait-limit", wait_limit, "--epochs", "1000000", "--no-report", "--out", tmp_path / "run"]
    return test_faults.run(["-m", "mpidml", "train", *words])


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_an_exception_is_told_once_with_the_place_on_the_grid(tmp_path, monkeypatch, place):
    ended = train(tmp_path, monkeypatch, place, "raise ArithmeticError('one place fails')")
    check(ended)
    assert ended.code == 1 and ended.err.count("Traceback (most recent call last)") == 1, ended
    assert f"{place[-1]} ArithmeticError: one place fails" in ended.err, ended.err


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_rank_that_is_killed_ends_the_others(tmp_path, monkeypatch, place):
    ended = train(tmp_path, monkeypatch, place, "os.kill(os.getpid(), signal.SIGKILL)")
    check(ended)
    assert "signal 9" in ended.out + ended.err, "the launcher tells of it: the rank cannot"


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_rank_that_stands_still_is_waited_for_no_longer_than_the_limit(tmp_path, monkeypatch, place):
    ended = train(tmp_path, monkeypatch, place, "os.kill(os.getpid(), signal.SIGSTOP)", wait_limit=1.0)
    check(ended)
    assert ended.err.count("Traceback (most recent call last)") == 1, ended.err
    report = next(line for line in ended.err.splitlines() if "WaitTimeout" in line and line.startswith("[rank "))
    assert re.match(r"\[rank \d/\d (data \d pipe \d|pipe \d|tensor \d)\] WaitTimeout: ", report) and not report.startswith(place[-1]), report
    assert "the limit is 1 s (--wait-limit)" in report, report
