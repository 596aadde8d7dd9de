"""Rows on the disk are read as an array's are: any rows, in any order, neighbours together, over several files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.data import stored
from mpidml.data.stored import Segment, Stored, gather, matrix_in

ROWS = np.arange(300.0).reshape(100, 3)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Give the rows in three files, the second of another type, behind 7 bytes of something else."""
    folder, segments = tmp_path_factory.mktemp("parts"), []
    for number, (lo, hi, dtype) in enumerate(((0, 10, "<f8"), (10, 45, ">i4"), (45, 100, "<f8"))):
        path = folder / f"{number}"
        path.write_bytes(b"1234567" + ROWS[lo:hi].astype(dtype).tobytes())
        segments.append(Segment(str(path), 7, hi - lo, dtype))
    return Stored(segments, ROWS.shape)


@given(st.lists(st.integers(0, 99), max_size=40, unique=True))
def test_any_rows_in_any_order_are_those_of_the_array(parts: Stored, numbers: list[int]) -> None:
    assert (parts[np.array(numbers, np.int64)] == ROWS[numbers]).all()


@pytest.mark.parametrize("key", [slice(0, 0), slice(3, 60), slice(None, None, 7), slice(9, 11), (slice(8, 50), 2), (44, 1)])
def test_slices_and_columns_are_those_of_the_array(parts: Stored, key: Any) -> None:
    assert np.array_equal(parts[key], ROWS[key]) and parts.dtype == np.float64


def test_neighbours_are_read_together_and_a_whole_slice_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(ROWS.tobytes())
    x = Stored([Segment(str(tmp_path / "x"), 0, 100, "<f8")], ROWS.shape)
    calls: list[int] = []
    read = os.preadv
    monkeypatch.setattr(stored.os, "preadv", lambda fd, pieces, offset: calls.append(offset) or read(fd, pieces, offset))
    assert (x[20:90] == ROWS[20:90]).all() and calls == [20 * 24]
    calls.clear()
    wanted = np.array([50, 7, 9, 8, 51, 99, 0])
    assert (x[wanted] == ROWS[wanted]).all() and calls == [0, 7 * 24, 50 * 24, 99 * 24]


def test_a_system_that_reads_less_than_it_is_asked_for_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(ROWS.tobytes())
    x = Stored([Segment(str(tmp_path / "x"), 0, 100, "<f8")], ROWS.shape)
    read = os.preadv
    monkeypatch.setattr(stored.os, "preadv", lambda fd, pieces, offset: read(fd, [pieces[0][:7]], offset))
    for numbers in (np.arange(5, 25), np.array([3, 2, 4, 80])):
        assert (x[numbers] == ROWS[numbers]).all()


def test_a_file_that_has_become_shorter_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(ROWS.tobytes())
    with path.open("r+b") as file:
        file.truncate(99 * 24 + 5)
        out = np.empty((2, 3))
        gather(file.fileno(), 0, np.array([1, 50]), out, "x")
        with pytest.raises(EOFError, match="ends at byte 2381"):
            gather(file.fileno(), 0, np.array([50, 99]), out, "x")
    with pytest.raises(ValueError, match="it ends at byte 2381, its array of shape"):
        matrix_in(str(path), 0, (100, 3), "<f8", path.stat().st_size)
