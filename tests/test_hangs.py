"""No wait hangs: whoever stands still, has left, or calls something else is named, and the job ends, with no process left behind."""

import re

import pytest

from tests.ranks import mpirun
from tests.test_faults import check, run

pytestmark = pytest.mark.openmpi
SCRIPT = """
import os, signal, sys, time
from mpidml.runtime import abort
from mpidml.runtime.comm import CountedComm, world
abort.install(world())
abort.limit_waits(2)
comm = CountedComm()
print(f"rank {os.getpid()}\\n", end="", flush=True)
comm.Barrier()


def harm():
    print("fault\\n", end="", flush=True)
    FAULT


def go_on():
    OTHERS


harm() if comm.rank == 1 else go_on()
"""


@pytest.fixture
def job(tmp_path):
    """Write the script in which rank 1 does one thing and the others do another."""

    def write(fault, others="comm.Barrier()", first=""):
        path = tmp_path / "job.py"
        path.write_text(first + SCRIPT.replace("FAULT", fault).replace("OTHERS", others))
        return path

    return write


def told(ended):
    """Return the one report of a hang: its first line, and those that say where the other ranks stand."""
    check(ended)
    assert ended.code == 1, ended
    assert ended.err.count("WaitTimeout: ") == 1 and "Traceback" not in ended.err, ended.err
    lines = ended.err[ended.err.index("[rank ") :].splitlines()
    assert "Stack of this rank (most recent call last):" in lines
    return lines[0], [line.strip() for line in lines if line.startswith("    rank ")]


def test_ranks_that_call_different_things_are_both_named_with_their_places(job):
    head, lines = told(run([job("comm.allgather(1)")]))
    places = [head, *lines]
    assert re.match(r"\[rank \d/3\] WaitTimeout: (Barrier|allgather) 3 of all ranks, called at .*job\.py:\d+ \((harm|go_on)\), ", head), head
    assert any(re.search(r"allgather 3 of all ranks|at .*job\.py:\d+ \(harm\)", of) for of in places), places
    assert any(re.search(r"Barrier 3 of all ranks", of) and re.search(r"job\.py:\d+ \(go_on\)", of) for of in places), places
    assert "the limit is 2 s (--wait-limit)" in head


def test_a_rank_that_is_stopped_is_named_and_does_not_stay_behind(job):
    head, lines = told(run([job("os.kill(os.getpid(), signal.SIGSTOP)")]))
    assert re.match(r"\[rank [02]/3\] WaitTimeout: rank 1 has not answered for \d+\.\d s: its process \d+ is stopped \(state T in /proc\)", head), head
    assert "Barrier 3 of all ranks, called at" in head and "job.py" in head
    assert len(lines) == 2 and any(re.match(r"rank [02]: has come; waits at .*job\.py:\d+ \(go_on\): Barrier 3", line) for line in lines), lines


def test_a_rank_that_has_left_is_named(job):
    head, _ = told(run([job("sys.exit(0)")]))
    assert re.search(r"rank 1 has not answered for \d+\.\d s: its program has come to its end; Barrier 3 of all ranks, called at .*\(go_on\)", head), head


ROUNDS = """total = mpidml.Gradients({{"w": (1000,)}}, collective={collective!r})
    abort._end.watchdog.judge.silent_seconds = 2
    for k, _ in enumerate(total.over(range(5))):
        total.reduce(1)
        if k == 2 and comm.rank == 1:
            {end}"""


@pytest.mark.parametrize(("collective", "end"), [("mpi", "sys.exit(0)"), ("ring", "break"), ("shared", "break")])
def test_a_rank_that_has_left_its_rounds_of_sums_is_named_long_before_the_limit(job, collective, end):
    rounds = ROUNDS.format(collective=collective, end=end)
    head, _ = told(run([job(rounds, rounds, first="import mpidml\n")]))
    assert re.search(r"rank 1 has not answered for \d+\.\d s: its program has come to its end; a sum over ranks from .*, called at ", head), head


def test_a_rank_that_is_stopped_is_missed_at_the_end_too(job):
    head, lines = told(run([job("os.kill(os.getpid(), signal.SIGSTOP)", "pass")]))
    assert "rank 1 has not answered for" in head and "the end of all ranks' programs" in head, head
    assert "rank" in lines[0] and any("its program has come to its end" in line for line in lines), lines


def test_who_never_comes_to_the_end_is_named_and_who_works_is_waited_for(job):
    head, _ = told(run([job("__import__('threading').Event().wait()", "pass")]))
    assert "waits for rank 1 for" in head and "the end of all ranks' programs" in head, head
    works = mpirun(3, [job("[sum(range(10**5)) for end in [time.time() + 5] for _ in iter(lambda: time.time() < end, False)]", "pass")])
    assert works.code == 0 and "WaitTimeout" not in works.err, works


def test_a_watchdog_that_never_ends_anything_is_caught(job):
    first = "from mpidml.runtime.judge import Judge\nJudge.hear = lambda *_, **__: None\n"
    assert mpirun(2, [job("comm.allgather(1)", first=first)], timeout=8).timed_out


def test_a_rank_that_never_starts_mpi_is_waited_for_no_longer_than_the_limit(tmp_path):
    path = tmp_path / "start.py"
    path.write_text(
        "import os, time\nfrom mpidml.runtime import start_limit\nstart_limit.LIMIT_SECONDS = 2\n"
        "if os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '1': time.sleep(99)\n"
        "import mpidml.runtime.comm\n"
    )
    ended = mpirun(2, [path])
    assert ended.code != 0 and not ended.timed_out
    assert "most recent call first" in ended.err and "start.py" in ended.err, ended.err
