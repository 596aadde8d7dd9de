"""What a run with --memory takes stays below the limit on every rank, with data four times as large, and no rank holds more than the others."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

import mpidml
from mpidml.core.errors import UserError
from mpidml.core.sizes import parse_size, size_words
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.scratch import Scratch
from tests.data.written import csv, npy, parquet
from tests.ranks import mpirun, python

SLACK_MB = 10
"""What decoding takes in each process besides: a block of text cut into cells, an allocator that keeps what it was given back."""
PEAK = """
import sys, mpidml
from mpi4py import MPI
job = mpidml.Job(data=sys.argv[1], memory=sys.argv[2], hidden=(4,), steps=60, batch=256, backend="numpy")
found = mpidml.train(job, quiet=True, write=False)
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
peaks = MPI.COMM_WORLD.gather(peak)
if peaks:
    print("peaks", *peaks, found["disk_nbytes"])
"""


def peaks(tmp_path: Path, source: str, memory: str) -> tuple[list[float], int]:
    """Return the most memory that each of two ranks has held, in MB, and the bytes that stayed on the disk."""
    (tmp_path / "peak.py").write_text(PEAK)
    result = mpirun(2, [tmp_path / "peak.py", source, memory], timeout=120)
    assert result.code == 0, result.out + result.err
    *found, on_disk = re.search(r"peaks (\S+) (\S+) (\d+)", result.out).groups()  # type: ignore[union-attr]
    return [float(peak) for peak in found], int(on_disk)


@pytest.mark.parametrize(("form", "n", "limit_mb"), [(npy, 500_000, 48), (csv, 60_000, 4), (parquet, 150_000, 8)])
def test_every_rank_stays_below_the_limit_with_data_four_times_as_large(tmp_path: Path, form, n: int, limit_mb: int) -> None:
    x = (np.arange(n * 50, dtype=np.float64).reshape(n, 50) * 37 % 251) if form is npy else np.arange(n * 12, dtype=np.float64).reshape(n, 12) * 37 % 251
    y = (x[:, 0] > 125).astype(np.int64)
    name = {npy: "x.npy", csv: "t.csv", parquet: "t.parquet"}[form]
    (tmp_path / "tiny").mkdir()
    whole, tiny = form(tmp_path / name, x, y), form(tmp_path / "tiny" / name, x[:3000], y[:3000])
    assert x.nbytes > (4 if form is npy else 0.9) * limit_mb * 1e6
    del x, y
    with_all, on_disk = peaks(tmp_path, whole, f"{limit_mb}M")
    with_few, nothing = peaks(tmp_path, tiny, f"{limit_mb}M")
    assert on_disk and not nothing
    above = [most - least for most, least in zip(with_all, with_few, strict=True)]
    assert max(above) < limit_mb + (SLACK_MB if form is not npy else 2), above
    assert with_all[0] <= 1.5 * with_all[1] and with_all[1] <= 1.5 * with_all[0], with_all


def test_without_a_limit_rows_that_lie_open_are_brought_in_by_all_ranks(tmp_path: Path) -> None:
    x = np.arange(12_500_000, dtype=np.float64).reshape(-1, 50) * 37 % 251
    source = npy(tmp_path / "x.npy", x, (x[:, 0] > 125).astype(np.int64))
    first, other = peaks(tmp_path, source, "")[0]
    assert first <= 1.5 * other, (first, other)


@pytest.mark.parametrize(("text", "nbytes"), [("512M", 512 << 20), ("2G", 2 << 30), ("1.5g", 3 << 29), ("700", 700), ("3 KiB", 3072), ("1TB", 1 << 40)])
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_size(text, "--memory") == nbytes <= parse_size(size_words(nbytes), "") <= 1.2 * nbytes


@pytest.mark.parametrize("text", ["", "much", "-3M", "0", "5X", "1e9", "G", "0.2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a number of bytes; give one as 512M or 2G"):
        parse_size(text, "--memory")


def test_a_run_says_what_stays_on_the_disk_and_what_reading_took(tmp_path: Path) -> None:
    n = 30_000
    x = np.arange(n * 40, dtype=np.float64).reshape(n, 40) * 37 % 251
    source = npy(tmp_path / "x.npy", x, (x[:, 0] > 125).astype(np.int64))
    words = ["-m", "mpidml", "train", "--data", source, "--hidden", "4", "--steps", "20", "--backend", "numpy"]
    found = python([*words, "--out", tmp_path / "run", "--memory", "4M"])
    assert found.code == 0, found.err
    assert "--memory 4M: 9.2M of rows stay on the disk, where they are, read" in found.out, found.out
    assert re.search(r"reading 9.2M of rows on the disk took the ranks \d\.\d\d s, of which they waited \d\.\d\d s", found.out), found.out
    result = python([*words, "--out", tmp_path / "bad", "--memory", "1M"])
    said = "--memory 1M: labels, a batch of 64 rows read ahead, and what reading them takes need 2.2M on 1 rank(s) of a host; give at least that"
    assert result.code == 2 and result.err.strip().endswith(said) and "Traceback" not in result.err and not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"memory": "lots"}, "--memory lots: is not a number of bytes; give one as 512M or 2G"),
        ({"scratch": "/tmp"}, "--scratch /tmp: does nothing without --memory; give a limit, or leave it out"),
        (
            {"memory": "4M", "scratch": "/none"},
            "--scratch /none: no file can be made there (No such file or directory); name a folder that can be written",
        ),
    ],
)
def test_limits_that_cannot_be_are_refused(flags: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        mpidml.train(mpidml.Job(steps=1, backend="numpy", **flags), quiet=True, write=False)


def test_a_disk_that_is_too_small_is_told_before_any_row_is_written(tmp_path: Path) -> None:
    alone = CountedComm()
    scratch = Scratch(str(tmp_path), alone)
    assert not list(tmp_path.iterdir()), "the file has no name any more"
    with pytest.raises(UserError, match=f"^--scratch {tmp_path}: 1000000000000000 MB of rows do not fit what is free there"):
        scratch.reserve(10**21)
    assert (scratch.reserve(100), scratch.reserve(8), os.fstat(scratch.fd).st_size) == (0, 100, 108)
    scratch.write(np.arange(4.0), 50)
    assert os.pread(scratch.fd, 32, 50) == np.arange(4.0).tobytes()
    alone.free()


def test_a_limit_says_that_it_does_nothing_on_arrays_of_a_program_and_on_few_rows(capsys: pytest.CaptureFixture[str]) -> None:
    job = mpidml.Job(steps=1, backend="numpy", memory="1G")
    mpidml.train(job, write=False)
    mpidml.train(job, write=False, data=(np.ones((20, 3)), np.arange(20) % 2))
    said = capsys.readouterr().out
    assert "the rows take" in said and "and are in memory" in said and "does nothing, the data are arrays of a program" in said
