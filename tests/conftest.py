"""Make MPI tests end: after each step of a test the ranks vote, so that all of them agree on its result and go on together.

    passed everywhere                go on
    failed, or skipped, on some      all fail; rank 0 reports each failing rank's traceback
    failed here, the others stuck    after GRACE_SECONDS print the traceback here, the others' stacks, and abort
    passed here, the others stuck    the same after LIMIT_SECONDS, of ranks that share cores so many times that

Without --with-mpi nothing here loads MPI, but for a test that asks for `alone`.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from benchmarks import card
from mpidml.collectives import auto
from mpidml.core.errors import UserError
from mpidml.runtime.launch import THREAD_VARIABLES, find_mpirun, flavour
from tests.ranks import BENCH, LACKING, need
from tests.shares import others

for variable in THREAD_VARIABLES:  # several ranks compare bits, and share cores with others
    os.environ.setdefault(variable, "1")

GRACE_SECONDS = float(os.environ.get("MPIDML_TEST_GRACE", "10"))
LIMIT_SECONDS = float(os.environ.get("MPIDML_TEST_LIMIT", "60"))
VERDICTS = ("passed", "failed", "skipped")
STARTERS = {"mpirun", "python", "subprocess"}
LEFT_OUT = pytest.StashKey[list[str]]()

# Every rank must draw the same examples, and a busy machine must not fail a test.
hypothesis.settings.register_profile(
    "mpidml", derandomize=True, database=None, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("mpidml")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register marks, stacks on SIGUSR2, the result file of `python -m tests` and, with --with-mpi, the vote."""
    config.addinivalue_line("markers", "openmpi(only=False): run with Open MPI too; with only=True nowhere else")
    config.addinivalue_line("markers", "shows_from(n): fewer ranks do not show what a parameter set is about: those of n and more share all sets (tests/shares.py)")
    config.addinivalue_line("markers", "everywhere: each parameter set runs at every number of ranks")
    config.addinivalue_line("markers", "programs: of a module that starts programs; set on every test whose module knows one of tests.ranks' starters")
    config.addinivalue_line("markers", "bench(package=torch, ...): compares with packages of the extra `bench`; left out where one is not installed")
    config.addinivalue_line("markers", "gpu: runs on a GPU, by real CuPy; left out, and that is said, where there is none")
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        stderr = os.dup(2)  # what is said in the last moment must not end in pytest's capture file
    faulthandler.register(signal.SIGUSR2, file=stderr, all_threads=True)
    voting = None
    if config.getoption("--with-mpi"):
        voting = Voting(stderr)
        config.pluginmanager.register(voting, "mpidml-voting")
        if voting.world.rank:
            config.pluginmanager.unregister(name="terminalreporter")
    if (path := os.environ.get("MPIDML_TEST_RESULTS")) and (voting is None or voting.world.rank == 0):
        config.pluginmanager.register(Results(Path(path)), "mpidml-results")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests of modules that start programs."""
    if STARTERS & vars(item.getparent(pytest.Module).obj).keys():  # type: ignore[union-attr]
        item.add_marker("programs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another part of `python -m tests` runs (tests for more ranks than these, tests for the other MPI, of many parameter sets those of its share),
    `bench` without its packages, `gpu` without one."""
    voting = config.pluginmanager.getplugin("mpidml-voting")
    size = voting.world.size if voting else None
    largest = int(os.environ.get("MPIDML_TEST_LARGEST", "0"))
    other = [item for item in items if (mark := item.get_closest_marker("openmpi")) and mark.kwargs.get("only")]
    if other and _is_openmpi():
        other = []
    bench = [item for item in items if (mark := item.get_closest_marker("bench")) and set(mark.args or BENCH[:1]) & set(LACKING)]
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    no_gpu = card.lacking() if on_gpu else ""
    said = [f"{len(bench)} test(s) left out: marked `bench`, and {', '.join(LACKING)} not installed (pip install '.[bench]' brings them)"] * bool(bench)
    config.stash[LEFT_OUT] = said + [f"{len(on_gpu)} test(s) left out: marked `gpu`, and {no_gpu}"] * bool(no_gpu)
    absent = {*map(id, other), *map(id, bench), *(map(id, on_gpu) if no_gpu else ())}
    if size in (shared := [*map(int, os.environ.get("MPIDML_TEST_SHARED", "").split())]):
        at_all = (*map(id, on_gpu), *(id(item) for item in items if item.get_closest_marker("everywhere")))
        elsewhere = others({item.nodeid: _least(item) for item in items if id(item) not in absent.union(at_all)}, size, shared)
        absent |= {id(item) for item in items if item.nodeid in elsewhere}
    out = [item for item in items if id(item) in absent or (size and size < _min_size(item) <= largest)]
    if out:
        config.hook.pytest_deselected(items=out)
        left = set(map(id, out))
        items[:] = [item for item in items if id(item) not in left]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out, and why."""
    for line in terminalreporter.config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(line)


def _is_openmpi() -> bool:
    try:
        return flavour(find_mpirun(os.environ)) == "openmpi"
    except UserError:
        return False


def _min_size(item: pytest.Item) -> int:
    return max((mark.kwargs.get("min_size") or 1 for mark in item.iter_markers("mpi")), default=1)


def _least(item: pytest.Item) -> int:
    return max(_min_size(item), *(mark.args[0] for mark in item.iter_markers("shows_from")), 1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Let each of several ranks import only the modules that have tests for ranks."""
    leave = config.getoption("--with-mpi") and collection_path.name.startswith("test_") and "mark.mpi" not in collection_path.read_text()
    return True if leave else None


@pytest.fixture
def comm() -> Any:
    """Give a communicator over all ranks that no other test uses."""
    from mpi4py import MPI

    own = MPI.COMM_WORLD.Dup()
    yield own
    own.Free()
    double = sys.modules.get("tests.shim.cupy_double")
    if double is not None and double.locked:
        gc.collect()  # of a run that has failed on purpose
    if double is not None and double.locked:
        double.locked.clear()
        pytest.fail("memory is left page-locked")


@pytest.fixture(params=["double, lazy streams", "double, eager streams", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupys(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Give CuPy: the double, its streams as late as may be and at once, and the real one on a GPU."""
    if request.param == "gpu":
        import cupy

        yield cupy
        return
    from tests.shim import cupy_double

    need(shutil.which("g++"), "a C++ compiler (g++)")
    with cupy_double.streams(request.param.split()[1]):
        yield cupy_double


class Voting:
    """One rank's part in the vote, on a communicator that tests never see."""

    def __init__(self, stderr: int) -> None:
        from mpi4py import MPI

        self.world = MPI.COMM_WORLD
        self.private = self.world.Dup()
        self.limit = LIMIT_SECONDS * max(1.0, self.world.size / (os.cpu_count() or 1))
        self.stderr = stderr
        self.processes = self.private.allgather((socket.gethostname(), os.getpid()))
        own = Path(tempfile.gettempdir(), f"mpidml-tests-rank{self.world.rank}-of-{self.world.size}")  # ranks that tidy one folder trip each other
        own.mkdir(exist_ok=True)
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(own)
        auto.WARM_NBYTES = 1 << 12  # 5 to 16 sums are measured where `auto` is opened, in place of up to 2,048: whatever it takes, the sum has to be right

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        report = yield
        if self.world.size > 1 and item.get_closest_marker("mpi"):
            self.vote(report)
        return report

    def vote(self, report: pytest.TestReport) -> None:
        """Make this rank's report say what all ranks found. Collective."""
        mine = bytearray([VERDICTS.index(report.outcome)])
        all_of_them = bytearray(self.world.size)
        request = self.private.Iallgather(mine, all_of_them)
        # One rank after the other gives up, the lowest first, so that what they print does not mix.
        limit = (GRACE_SECONDS if report.failed else self.limit) + 0.5 * self.world.size * self.world.rank
        start = time.monotonic()
        while not request.Test():
            if time.monotonic() - start > limit:
                self.give_up(report, limit)
            time.sleep(0.0005)
        found = [VERDICTS[code] for code in all_of_them]
        if len(set(found)) == 1 and not report.failed:
            return
        texts = self.private.gather(f"{report.outcome}\n{report.longreprtext}" if not report.passed else None)
        bad = [rank for rank, verdict in enumerate(found) if verdict != "passed"]
        report.outcome = "failed"
        report.longrepr = f"failed or skipped on rank(s) {bad} of {self.world.size}\n"
        report.longrepr += "\n".join(f"--- rank {rank}: {text}" for rank, text in enumerate(texts or []) if text)

    def pytest_unconfigure(self) -> None:
        """Wait for rank 0 to have told its summary: Open MPI ends the job when a first rank leaves with a code."""
        sys.stdout.flush()
        self.private.Barrier()

    def give_up(self, report: pytest.TestReport, limit: float) -> None:
        """Say what is known here, have the others print their stacks, and end the job."""
        me = f"[rank {self.world.rank}/{self.world.size}]"
        text = f"\n{me} {report.nodeid}: {report.outcome} here ({report.when}), but after {limit:g} s another rank has not finished\n"
        os.write(self.stderr, f"{text}{report.longreprtext}\n".encode())
        for rank, (host, process) in enumerate(self.processes):
            if host == socket.gethostname() and rank != self.world.rank:
                os.write(self.stderr, f"{me} stacks of rank {rank}:\n".encode())
                os.kill(process, signal.SIGUSR2)
                time.sleep(0.3)
        self.world.Abort(1)
        time.sleep(5)  # MPICH's Abort may return before the launcher ends this rank
        os._exit(1)


@pytest.fixture
def alone() -> Iterator[Any]:
    """Return a communicator of this process alone."""
    from mpi4py import MPI

    from mpidml.runtime.comm import CountedComm

    found = CountedComm(MPI.COMM_SELF)
    yield found
    found.free()


class Results:
    """Write each test's start and outcome as one JSON line at once, so that even a killed run can be counted."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", buffering=1)

    def write(self, test: str, outcome: str, report: pytest.TestReport | pytest.CollectReport | None = None) -> None:
        text = report.longreprtext if report and report.failed else ""
        entry = {"test": test, "outcome": outcome, "reason": _reason(report) if report else "", "text": text, "seconds": getattr(report, "duration", 0.0)}
        self.file.write(json.dumps(entry) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(nodeid, "started")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.write(report.nodeid, report.outcome, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.write(report.nodeid, report.outcome, report)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if not report.skipped:
        return ""
    text = getattr(report, "wasxfail", "") or (report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))
    return text.removeprefix("Skipped: ")
