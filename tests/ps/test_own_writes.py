"""A worker that adds what an answer lacks sees its own writes, each once: the overlay equals a plain replay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.ps.own_writes import OwnWrites, Region

LO, N, WIDTH = 20, 8, 2
INSIDE = st.integers(LO, LO + N - 1)
BLOCKS = st.tuples(INSIDE, INSIDE).map(lambda ends: Region(min(ends), max(ends) + 1))
REGIONS = BLOCKS | st.lists(INSIDE, min_size=1, max_size=6).map(lambda rows: Region(-1, -1, np.array(rows)))
WRITES = st.lists(st.tuples(REGIONS, st.booleans()), max_size=8)


def rows_of(region):
    return np.arange(region.lo, region.hi) if region.rows is None else region.rows


def check_replay(cls, by_clock, writes, read, version, count, forgotten):
    """Write, forget some of what answers contain, and hold a read to a table to which each write was added by hand."""
    own, lacking, clock = cls(by_clock), np.zeros((N, WIDTH)), 0
    for number, (region, ends_clock) in enumerate(writes, 1):
        values = np.full((rows_of(region).size, WIDTH), 10.0**number) + np.arange(WIDTH)
        kept = values.copy()
        own.add(number, clock, region, values)
        if not (clock < version if by_clock else number <= count):
            np.add.at(lacking, rows_of(region) - LO, kept)
        values[:] = np.nan  # the caller reuses its buffer
        clock += ends_clock
    own.forget(version - forgotten, count - forgotten)
    out = np.zeros((rows_of(read).size, WIDTH))
    own.overlay(out, read, version, count)
    assert np.array_equal(out, lacking[rows_of(read) - LO])


@pytest.mark.parametrize("by_clock", [True, False])
@given(WRITES, REGIONS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_an_answer_and_its_overlay_hold_each_own_write_once(by_clock, writes, read, version, count, forgotten):
    check_replay(OwnWrites, by_clock, writes, read, version, count, forgotten)


class Keeps(OwnWrites):
    """Shares the caller's buffer."""

    def add(self, number, clock, region, values):
        super().add(number, clock, region, values)
        self.writes[-1] = self.writes[-1]._replace(values=values, region=region)


class CountsTwice(OwnWrites):
    def contained(self, write, version, count):
        return write.clock < version - 1 if self.by_clock else write.number < count


class ForgetsAll(OwnWrites):
    def forget(self, version, count):
        self.writes.clear()


@pytest.mark.parametrize("broken", [Keeps, CountsTwice, ForgetsAll])
@pytest.mark.parametrize("by_clock", [True, False])
def test_the_replay_catches(broken, by_clock):
    whole = Region(LO, LO + N)
    with pytest.raises(AssertionError):
        check_replay(broken, by_clock, [(whole, True), (whole, True), (whole, True)], whole, 2, 2, 0)


def test_what_every_answer_contains_is_kept_no_longer():
    by_number, by_clock = OwnWrites(False), OwnWrites(True)
    for own in (by_number, by_clock):
        for number in (1, 2, 3):
            own.add(number, number - 1, Region(LO, LO + 1), np.ones((1, WIDTH)))
        own.forget(version=1, count=2)
    assert [w.number for w in by_number.writes] == [3]
    assert [w.clock for w in by_clock.writes] == [1, 2]
