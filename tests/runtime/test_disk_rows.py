"""Rows on the disk have the spelling and the bits of an array in memory, are read ahead, and leave no thread behind."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidml.core.rng import stream
from mpidml.data.scaling import Scaler
from mpidml.data.stored import Segment, Stored
from mpidml.runtime.disk_rows import DiskRows
from mpidml.runtime.reads import Portions, Reads

N, WIDTH = 1000, 5
ROWS = stream(1, "rows").normal(size=(N, WIDTH))
NUMBERS = np.sort(stream(2, "kept").permutation(N)[:800])
SCALER = Scaler(ROWS.mean(axis=0), 1 / ROWS.std(axis=0))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mpidml-reads")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "x").write_bytes(ROWS.tobytes())
    return tmp_path / "x"


def rows_of(block: int) -> np.ndarray:
    return np.arange(16 * block, 16 * block + 16)


def pair(path: Path, portion_nbytes: int = 4000, ahead: bool = True) -> tuple[DiskRows, np.ndarray]:
    """Return rows on the disk and the same in memory."""
    x = np.empty((len(NUMBERS), WIDTH), np.float32)
    SCALER.apply(ROWS[NUMBERS], x)
    reads = Reads(portion_nbytes, ahead)
    return DiskRows(Stored([Segment(str(path), 0, N, "<f8")], ROWS.shape), NUMBERS, SCALER, np.float32, reads), x


@pytest.mark.parametrize("key", [slice(None), slice(5, 90), slice(0, 0), slice(3, 700, 9), slice(-7, None), np.array([4, 2, 700])])
def test_parts_are_those_of_the_array(path: Path, key: Any) -> None:
    disk, memory = pair(path)
    assert np.asarray(disk[key]).tobytes() == memory[key].tobytes() and disk[key].shape == memory[key].shape and len(disk[key]) == len(memory[key])
    assert np.asarray(disk[key][1:3]).tobytes() == memory[key][1:3].tobytes()
    disk.reads.close()


def test_rows_are_taken_as_from_the_array(path: Path) -> None:
    disk, memory = pair(path)
    index = stream(3, "index").permutation(len(NUMBERS))[:64]
    out = np.empty((64, WIDTH), np.float32)
    assert disk.take(index, 0, out, "clip") is out and out.tobytes() == memory.take(index, 0).tobytes() == disk.take(index).tobytes()
    assert (disk[:, 2] == memory[:, 2]).all() and (disk[10:20, 0] == memory[10:20, 0]).all()
    out[...] = disk[8:72]
    assert out.tobytes() == memory[8:72].tobytes() and disk.dtype == np.float32 and disk.ndim == 2
    assert np.array(disk[:9], np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="axis 0"):
        disk.take(index, 1)
    disk.reads.close()


@pytest.mark.parametrize(("step", "of"), [(64, slice(None)), (64, slice(128, 600)), (7, slice(0, 50)), (1, slice(0, 9))])
def test_parts_in_turn_are_read_ahead_once_each(path: Path, step: int, of: slice) -> None:
    disk, memory = pair(path)
    x, whole = disk[of], memory[of]
    for _ in range(2):
        for lo in range(0, len(whole), step):
            assert np.asarray(x[lo : lo + step]).tobytes() == whole[lo : lo + step].tobytes(), lo
    assert disk.reads.n_late == 2, "the first of each round"
    at_once = 4000 // (4 * WIDTH) // step * step
    assert disk.reads.n_early == 2 * -(-(len(whole) - step) // at_once)
    disk.reads.close()
    assert not threads()


def blocks(disk: DiskRows, following: Any, sure: bool, order: list[int]) -> list[np.ndarray]:
    feed = disk.feed(rows_of, following, 16, sure)
    return [feed.block(block, rows_of(block)).copy() for block in order]


@pytest.mark.parametrize("sure", [True, False])
@pytest.mark.parametrize("order", [list(range(0, 50, 2)), [0, 2, 4, 8, 10, 9, 11, 13, 48], [3, 3, 1, 1, 5]])
def test_blocks_are_the_rows_of_the_array_whatever_the_guess(path: Path, sure: bool, order: list[int]) -> None:
    disk, memory = pair(path)
    for block, rows in zip(order, blocks(disk, lambda b: b + 2 if b < 48 else None, sure, order), strict=True):
        assert rows.tobytes() == memory[16 * block : 16 * block + 16].tobytes()
    as_planned = all(b == a + 2 for a, b in pairwise(order))
    assert (disk.reads.n_late == 1) == as_planned
    disk.reads.close()
    assert not threads()


def test_without_a_thread_all_is_read_when_it_is_wanted(path: Path) -> None:
    disk, memory = pair(path, ahead=False)
    found = blocks(disk, lambda b: b + 1 if b < 49 else None, True, list(range(50)))
    assert np.concatenate(found).tobytes() == memory.tobytes() and not threads() and disk.reads.n_early == 0
    assert disk.reads.wait_seconds == disk.reads.read_seconds > 0


def test_a_portion_is_not_overwritten_while_it_is_used(path: Path) -> None:
    disk, memory = pair(path)
    feed = disk.feed(rows_of, lambda b: b + 1 if b < 49 else None, 16, True)
    for block in range(50):
        rows = feed.block(block, rows_of(block))
        if feed.portions.coming is not None:
            feed.portions.coming.result()  # the next portion is there, and this one still good
        assert rows.tobytes() == memory[16 * block : 16 * block + 16].tobytes()
    feed.portions.place = 0
    feed.portions.read = lambda items, place: feed._read(items, 0)  # the broken variant: one place for both
    caught = 0
    for block in range(50):
        rows = feed.block(block, rows_of(block))
        if feed.portions.coming is not None:
            feed.portions.coming.result()
        caught += rows.tobytes() != memory[16 * block : 16 * block + 16].tobytes()
    assert caught
    disk.reads.close()


def test_a_block_is_given_the_rows_that_are_asked_for_though_others_were_read_ahead(path: Path) -> None:
    """Shares may be cut anew behind what has been planned."""
    disk, memory = pair(path)
    cut, late = [16], []
    feed = disk.feed(lambda block: np.arange(16 * block, 16 * block + cut[0]), lambda b: b + 1 if b < 49 else None, 16, True)
    for block in range(50):
        cut[0] = 16 if block < 8 else 11
        wanted = np.arange(16 * block, 16 * block + cut[0])
        assert feed.block(block, wanted).tobytes() == memory[wanted].tobytes()
        late.append(disk.reads.n_late)
    assert late[7] == 1 < late[8] < late[30] == late[49] and disk.reads.n_early == 5, "what is planned later is read ahead again"
    disk.reads.close()


def test_an_error_of_the_thread_is_raised_where_its_rows_are_wanted(path: Path) -> None:
    disk, _ = pair(path)
    feed = disk.feed(rows_of, lambda b: b + 1 if b < 49 else None, 16, True)
    feed.block(0, rows_of(0))
    with path.open("r+b") as file:
        file.truncate(0)
    with pytest.raises(EOFError, match="ends at byte") as caught:
        for block in range(1, 50):
            feed.block(block, rows_of(block))
    assert "_whole" in [entry.name for entry in caught.traceback], "its own traceback"
    disk.reads.close()
    assert not threads()


def test_what_is_waited_for_is_counted_apart_from_what_is_read() -> None:
    reads = Reads(100, ahead=True)
    release = threading.Event()

    def read(items: list[int], place: int) -> dict[int, int]:
        if items != [0]:
            release.wait(5)
        return {item: -item for item in items}

    portions = Portions(reads, lambda item: [item], read)
    assert portions.get(0, lambda item: item + 1) == 0
    threading.Timer(0.1, release.set).start()
    assert portions.get(1, lambda item: None) == -1
    assert 0.05 < reads.wait_seconds <= reads.read_seconds + 0.01
    reads.close()
    assert not threads()
