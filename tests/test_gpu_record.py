"""A record of what ran on a GPU tells what ran, and where: without a GPU there is none, and one that the double made says so."""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from benchmarks import card
from tests import gpu_record
from tests.__main__ import Tally, on_gpu
from tests.gpu_record import FOLDER, TOOLS, main, record
from tests.ranks import ROOT, need, python
from tests.shim import cupy_double

FACTS = {"GPU": "Some Card, compute capability 9.0", "driver": "580.1", "CuPy": "14.2.0, NVRTC 13.0", "date": "2026-11-28 20:00 UTC", "command": "`x`"}


def counted(*parts):
    tally = Tally()
    for part, counts in parts:
        tally.add(part, 1.0, counts)
    return tally


def cells(text, name):
    (found,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    return found


def test_without_a_gpu_it_ends_at_once_with_one_line_and_code_2(tmp_path):
    if not card.lacking():
        return  # there it would run for hours
    result = python(["-m", "tests.gpu_record", "--out", tmp_path / "r.md"], 60)
    assert result.code == 2 and result.out == "" and len(result.err.splitlines()) == 1, result
    assert result.err.startswith(f"gpu_record: {card.lacking()}; run it where an NVIDIA GPU") and not list(tmp_path.iterdir())


def test_a_record_is_never_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(card, "lacking", lambda: "")
    (tmp_path / "r.md").write_text("mine")
    assert main(["--out", str(tmp_path / "r.md")]) == 2 and (tmp_path / "r.md").read_text() == "mine"
    assert capsys.readouterr().err == f"gpu_record: {tmp_path / 'r.md'} is there already; remove it, or give another --out\n"


def test_the_record_names_what_was_used_and_counts_each_part():
    tally = counted(("gpu", {"passed": 7, "skipped": 1}), ("memcheck", {"failed": 2, "passed": 3}))
    text = record(FACTS, tally, "said.", {"info": "mpidml  0.1\nMPI     MPICH 5.0.2, standard 5.0\n", "python benchmarks/x/run.py": "12 GB/s\n"})
    assert text.startswith("# What ran on a GPU, 2026-11-28 20:00 UTC\n")
    assert cells(text, "GPU") == FACTS["GPU"] and cells(text, "driver") == "580.1" and cells(text, "MPI") == "MPICH 5.0.2, standard 5.0"
    assert (cells(text, "gpu"), cells(text, "memcheck"), cells(text, "all")) == ("7 | 0 | 1 | 1", "3 | 2 | 0 | 1", "10 | 2 | 1 | ")
    assert "## python benchmarks/x/run.py\n\n```text\n12 GB/s\n```\n" in text and "said.\n" in text


def test_a_record_that_the_double_made_says_that_no_gpu_was_used():
    text = record(card.facts(cupy_double) | {"date": "today"}, counted(), "", {"info": ""})
    assert text.startswith("# No GPU was used, today\n") and cells(text, "GPU").startswith("none: no GPU was used")


SANITIZER = """#!/bin/bash
[ "$1 $3 $4" == "--tool --error-exitcode 9" ] || exit 3
echo "$2" >> "$ASKED"
"${@:5}" && [ "$2" != "$FINDS" ] || exit 9
"""


@pytest.fixture
def as_gpu(monkeypatch, tmp_path):
    """Let the double stand for a GPU, in this process and in those that it starts; compute-sanitizer finds what $FINDS names."""
    need(shutil.which("g++"), "a C++ compiler (g++)")
    monkeypatch.setattr(card, "lacking", lambda: "")
    monkeypatch.setitem(sys.modules, "cupy", cupy_double)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/compute-sanitizer").write_text(SANITIZER)
    (tmp_path / "bin/compute-sanitizer").chmod(0o755)
    for name, value in {"PYTEST_PLUGINS": "tests.shim.as_gpu", "ASKED": str(tmp_path / "asked"), "FINDS": "racecheck"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


def test_what_is_marked_gpu_runs_in_one_process_and_on_ranks_where_there_is_one(monkeypatch):
    for lacking, expected in (("none", []), ("", [("gpu and not mpi",), ("gpu and mpi", 1), ("gpu and mpi", 2)])):
        monkeypatch.setattr(card, "lacking", lambda lacking=lacking: lacking)
        asked = []
        on_gpu(lambda part, *of, asked=asked: asked.append(of))
        assert asked == expected


def test_all_parts_run_each_tool_is_asked_and_what_one_finds_is_a_failure(as_gpu, monkeypatch, tmp_path, capsys):
    out = tmp_path / "records" / "r.md"
    monkeypatch.setattr(gpu_record, "TOOLS", {tool: TOOLS[tool] for tool in ("memcheck", "racecheck")})
    monkeypatch.setattr(gpu_record, "on_gpu", lambda here: here("gpu", "gpu and not mpi", within=("tests/kernels/test_gpu.py",)))  # all tests take a minute to find
    assert main(["--out", str(out), "-k", "nan_passes_every_kernel", "--smoke", "--limit", "90"]) == 1
    text, printed = out.read_text(), capsys.readouterr().out
    assert text in printed and printed.splitlines()[-1] == "6 passed, 1 failed, 0 skipped"
    assert (tmp_path / "asked").read_text().split() == ["memcheck", "racecheck"]
    assert cells(text, "gpu").startswith("1 | 0 | 0 | ") and cells(text, "memcheck").startswith("1 | 0 ")
    assert cells(text, "racecheck").startswith("1 | 1 ")
    assert cells(text, "gpu_kernels").startswith("1 | 0 ") and "left out: " in text.partition("## python benchmarks/gpu_step/run.py --smoke")[2]
    assert cells(text, "command") == "`python -m tests.gpu_record -k nan_passes_every_kernel --smoke`"
    assert text.startswith("# No GPU was used, ") and "MPI" in text and [path.name for path in out.parent.iterdir()] == ["r.md"]


def test_where_no_test_has_run_nothing_has_passed(as_gpu, monkeypatch):
    monkeypatch.setattr(gpu_record, "on_gpu", lambda here: None)
    tally = Tally()
    gpu_record.run_tests(tally, 10, None)
    assert tally.counts["failed"] == 1 and tally.finish() == 1


def test_without_compute_sanitizer_the_record_says_what_is_left_out(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "compute-sanitizer is not installed" in gpu_record.sanitized(tally := Tally(), 10, None) and not tally.parts


def whole(text):
    """Tell whether a record is one of a whole suite on a real GPU."""
    return text.startswith("# What ran on a GPU, ") and not cells(text, "GPU").startswith("none") and cells(text, "command") == f"`{gpu_record.COMMAND}`"


def test_what_is_kept_as_a_record_is_whole_and_of_a_real_gpu():
    assert [path.name for path in FOLDER.glob("*") if not whole(path.read_text())] == []
    real = record(FACTS | {"command": f"`{gpu_record.COMMAND}`"}, counted(), "", {"info": ""})
    assert whole(real) and not whole(real.replace(gpu_record.COMMAND, f"{gpu_record.COMMAND} --smoke"))
    assert not whole(record(FACTS | card.facts(cupy_double) | {"command": f"`{gpu_record.COMMAND}`"}, counted(), "", {"info": ""}))


def test_the_twins_of_jobs_run_it():
    for name in ("gpu_suite.sh", "gpu_suite.sbatch"):
        assert f'{gpu_record.COMMAND} "$@"' in (ROOT / "jobs" / name).read_text().splitlines()
