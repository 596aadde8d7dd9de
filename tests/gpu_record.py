"""Run all that needs a GPU, on a machine that has one, and write what came of it as one dated record, in Markdown.

    python -m tests.gpu_record [--out FILE] [--limit SECONDS] [-k EXPRESSION] [--smoke]

    tests marked `gpu`, in one process and on ranks  ->  the kernels' tests under compute-sanitizer, tool by tool  ->  benchmarks  ->  the record

The record names the card, its driver, CuPy, NVRTC and MPI, counts what passed and failed, and holds the figures; it is printed, and written when all has ended.
Exit code 0: something ran and nothing failed; 1: something failed; 2: there is no GPU, or the file is there already. What README.md says of
GPUs rests on the records in benchmarks/gpu_records, none of which may come from -k or --smoke.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import card
from mpidml.runtime.launch import without_launcher
from tests.__main__ import Tally, on_gpu, show, suite
from tests.ranks import ROOT, run

FOLDER = ROOT / "benchmarks" / "gpu_records"
SANITIZER, ERROR_CODE = "compute-sanitizer", 9
TOOLS = {"memcheck": "accesses out of bounds", "racecheck": "races", "initcheck": "reads of memory that nobody wrote", "synccheck": "barriers"}
BENCHMARKS = ("gpu_kernels", "gpu_step", "gpu_allreduce")
COMMAND = "python -m tests.gpu_record"


def main(given: Sequence[str] | None = None) -> int:
    """Run everything, print and write the record, and return the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Run all that needs a GPU and write a record of it.")
    parser.add_argument("--out", type=Path, help="the record (benchmarks/gpu_records/DATE.md)")
    parser.add_argument("--limit", type=float, default=3600, metavar="SECONDS", help="end a part after this time (3600)")
    parser.add_argument("-k", metavar="EXPRESSION", help="run the tests whose names match alone")
    parser.add_argument("--smoke", action="store_true", help="run benchmarks at their smallest sizes; the figures mean nothing")
    options = parser.parse_args(given)
    out = options.out or FOLDER / f"{time.strftime('%Y-%m-%d')}.md"
    problem = f"{card.lacking()}; run it where an NVIDIA GPU, its driver and CuPy are (pip install '.[cuda13,test]')" if card.lacking() else ""
    if problem or out.exists():
        print(f"gpu_record: {problem or f'{out} is there already; remove it, or give another --out'}", file=sys.stderr)
        return 2
    import cupy

    words = shlex.join([*COMMAND.split(), *(["-k", options.k] if options.k else []), *(["--smoke"] if options.smoke else [])])
    tally = Tally()
    run_tests(tally, options.limit, options.k)
    said = sanitized(tally, options.limit, options.k)
    figures = dict(measured(tally, name, options.limit, options.smoke) for name in BENCHMARKS)
    text = record(card.facts(cupy) | surroundings(words), tally, said, {"info": checked(options.limit)} | figures)
    out.parent.mkdir(parents=True, exist_ok=True)
    half = out.with_name(f".{out.name}.part")
    half.write_text(text)
    os.replace(half, out)
    print(text)
    print(f"written: {out}")
    return tally.finish()


def run_tests(tally: Tally, limit: float, keyword: str | None) -> None:
    """Run the tests marked `gpu`; that there were none is a failure."""
    on_gpu(partial(suite, tally, sys.executable, os.environ, keyword, limit))
    if not sum(tally.counts.values()):
        tally.add("no test ran", 0.0, {"failed": 1})


def sanitized(tally: Tally, limit: float, keyword: str | None) -> str:
    """Run the kernels' tests once under each tool of compute-sanitizer, whose finding is a failure; return what to say where it is missing."""
    if not shutil.which(SANITIZER):
        return f"{SANITIZER} is not installed (it comes with the CUDA toolkit): {', '.join(TOOLS)} are left out."
    for tool in TOOLS:
        under = [SANITIZER, "--tool", tool, "--error-exitcode", str(ERROR_CODE)]
        before = tally.counts["passed"] + tally.counts["failed"]
        suite(tally, sys.executable, os.environ, keyword, limit, tool, "gpu and not mpi", under=under, within=("tests/kernels",))
        if tally.counts["passed"] + tally.counts["failed"] == before:
            tally.add(f"{tool}: no test ran", 0.0, {"failed": 1})
    return f"Under {SANITIZER}, which counts as one failure whatever it finds: " + "; ".join(f"{tool}, {what}" for tool, what in TOOLS.items()) + "."


def measured(tally: Tally, name: str, limit: float, smoke: bool) -> tuple[str, str]:
    """Run a benchmark, count it as one test, and return its command and what it prints."""
    command = [f"benchmarks/{name}/run.py", *(["--smoke"] if smoke else [])]
    start = time.monotonic()
    result = run([sys.executable, *command], limit, without_launcher(os.environ))
    if result.code:
        show(name, result)
    tally.add(name, time.monotonic() - start, {"failed" if result.code else "passed": 1})
    return shlex.join(["python", *command]), result.out + result.err


def checked(limit: float) -> str:
    """Return what the package says of its installation here."""
    result = run([sys.executable, "-m", "mpidml", "info"], limit, without_launcher(os.environ))
    return result.out + result.err


def surroundings(words: str) -> dict[str, str]:
    """Return the rest of what a figure depends on, by name."""
    import numpy

    def git(*of: str) -> str:
        return subprocess.run(["git", *of], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = ", and changes that are in no commit" if git("status", "--porcelain") else ""
    return {
        "host": f"{platform.platform()}, {len(os.sched_getaffinity(0))} core(s); Python {platform.python_version()}, NumPy {numpy.__version__}",
        "source": f"commit {git('rev-parse', '--short=12', 'HEAD') or 'unknown'}{changed}",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"`{words}`",
    }


def record(facts: Mapping[str, str], tally: Tally, said: str, figures: Mapping[str, str]) -> str:
    """Return the record: what was used, a row a part, and what the benchmarks and the self-check printed. `facts` begin with the GPU, "none..." where none was used."""
    used = not facts["GPU"].startswith("none")
    info = figures["info"]
    mpi = next((line[4:].strip() for line in info.splitlines() if line.startswith("MPI ")), "unknown")
    lines = [f"# {'What ran on a GPU' if used else 'No GPU was used'}, {facts['date']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in {**facts, "MPI": mpi}.items()]
    lines += ["", "| part | passed | failed | skipped | seconds |", "|---|---|---|---|---|"]
    lines += [row(part, counts, f"{seconds:.0f}") for part, seconds, counts in tally.parts] + [row("all", tally.counts, "")]
    lines += ["", said, *(f"Skipped {count} time(s): {reason}." for reason, count in sorted(tally.reasons.items()))]
    for command, text in {"python -m mpidml info": info, **{name: text for name, text in figures.items() if name != "info"}}.items():
        lines += ["", f"## {command}", "", "```text", text.rstrip("\n"), "```"]
    return "\n".join(lines) + "\n"


def row(part: str, counts: Mapping[str, int] | Counter[Any], seconds: str) -> str:
    """Return a line of the record's table."""
    return f"| {part} | {counts.get('passed', 0)} | {counts.get('failed', 0)} | {counts.get('skipped', 0)} | {seconds} |"


if __name__ == "__main__":
    sys.exit(main())
