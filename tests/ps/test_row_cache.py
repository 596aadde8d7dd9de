"""A cache of rows answers like a plain dictionary of what it holds, and evicts no more than its capacity demands."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.ps.row_cache import FREE, USED, RowCache

WIDTH = 2


def stores(n_rows, n_most):
    return st.tuples(st.lists(st.integers(0, n_rows - 1), max_size=n_most), st.integers(0, 5), st.integers(0, 5))


def finds(n_rows, n_most):
    return st.tuples(st.lists(st.integers(0, n_rows - 1), max_size=n_most), st.integers(0, 5))


def steps(n_rows, n_most, n_steps):
    return st.lists(stores(n_rows, n_most) | finds(n_rows, n_most), max_size=n_steps)


def held_rows(cache, n_rows):
    """Return which rows are held, without a trace in the cache itself."""
    return set(np.flatnonzero(copy.deepcopy(cache).find(np.arange(n_rows), -1)).tolist())


def check_model(cls, capacity, steps, n_rows):
    """Do `steps`, (rows, version, counted) to store or (rows, oldest) to find, and hold every answer to a dictionary."""
    cache, model, serial = cls(capacity, WIDTH, np.float32), {}, 0
    n_hits = n_misses = n_evicted = 0
    for listed, *numbers in steps:
        rows = np.array(listed, np.int64)
        if len(numbers) == 2:
            version, counted = numbers
            values = (serial + np.arange(rows.size * WIDTH, dtype=np.float32)).reshape(-1, WIDTH)
            serial += values.size
            last = list(dict.fromkeys(reversed(listed)))[:capacity]
            for row in last:
                if row not in model or model[row][:2] <= (version, counted):
                    at = len(listed) - 1 - listed[::-1].index(row)
                    model[row] = (version, counted, values[at].tolist())
            cache.store(rows, values, version, counted)
            values[:] = np.nan  # the answer's buffer is reused
            held = held_rows(cache, n_rows)
            assert held <= model.keys(), "a row that was evicted, or never stored"
            assert held >= set(last), "a row that was just stored is missing"
            assert len(held) == len(cache) == min(capacity, len(model)), "too many rows, or evicted without need"
            n_evicted += len(model) - len(held)
            model = {row: model[row] for row in held}
        else:
            hit = cache.find(rows, numbers[0])
            assert hit.tolist() == [row in model and model[row][0] >= numbers[0] for row in listed]
            n_hits, n_misses = n_hits + hit.sum(), n_misses + (~hit).sum()
            out = np.full((hit.sum(), WIDTH), np.nan, np.float32)
            versions, counts = cache.read(rows[hit], out)
            assert list(zip(versions, counts, out.tolist(), strict=True)) == [model[row] for row in rows[hit].tolist()]
        for since, lo, hi in ((0, 0, None), (3, 0, None), (0, 2, 5), (2, 1, 4)):
            seen = [m for row, m in model.items() if m[0] >= since and row >= lo and (hi is None or row < hi)]
            assert cache.oldest_version(since, lo, hi) == min((m[0] for m in seen), default=None)
            assert cache.oldest_counted(since, lo, hi) == min((m[1] for m in seen), default=None)
    assert (cache.n_hits, cache.n_misses, cache.n_evicted) == (n_hits, n_misses, n_evicted)


@given(steps(12, 10, 12))
def test_a_cache_with_room_for_all_is_a_dictionary(steps):
    check_model(RowCache, 12, steps, 12)


@given(st.integers(1, 7), steps(12, 10, 12))
def test_a_small_cache_is_a_dictionary_of_what_it_holds(capacity, steps):
    check_model(RowCache, capacity, steps, 12)


def many_steps(n_rows, n_most, n_steps, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n_steps):
        rows = rng.zipf(1.2, rng.integers(1, n_most)) % n_rows
        yield (rows.tolist(), *rng.integers(0, 6, rng.integers(1, 3)).tolist())


@pytest.mark.parametrize("capacity", [63, 64, 65, 200])
def test_the_hand_takes_many_slots_at_a_time(capacity):
    check_model(RowCache, capacity, many_steps(600, 300, 60), 600)


class OlderReplacesNewer(RowCache):
    def _outdated(self, slots, version, counted):
        return np.ones(slots.size, bool)


class NoBound(RowCache):
    def __init__(self, capacity_rows, width, dtype):
        super().__init__(10 * capacity_rows, width, dtype)


class NextSlot(RowCache):
    """Looks beside the slot once something was evicted."""

    def _slots(self, rows):
        slots = super()._slots(rows)
        return np.where((slots >= 0) & (self.n_evicted > 0), (slots + 1) % self.capacity, slots)


class KeepsTheKey(RowCache):
    """Forgets that a slot was taken from another row."""

    def _forget(self, slots):
        self.n_evicted += int(np.count_nonzero(self.row_at[slots] >= 0))


class EvictsItsOwn(RowCache):
    """Does not spare the rows of the answer that it stores."""

    def _take(self, n):
        self.marks[self.marks != FREE] = USED
        return super()._take(n)


@pytest.mark.parametrize("broken", [OlderReplacesNewer, NoBound, NextSlot, KeepsTheKey, EvictsItsOwn])
def test_the_model_catches(broken):
    steps = [([0, 1, 2], 3, 3), ([0, 3], 3, 4), ([0, 4], 5, 5), ([0], 2, 9), ([0, 1, 2, 3, 4], 0), ([4, 0, 5], 6, 6), ([0, 4, 5], 0)]
    check_model(RowCache, 3, steps, 12)
    with pytest.raises((AssertionError, KeyError)):
        check_model(broken, 3, steps, 12)


def survivors(cls):
    """Store more rows one by one than there is room, while row 2 is read again and again."""
    cache = cls(4, WIDTH, np.float32)
    for row in [*range(4), *range(10, 30)]:
        cache.store(np.array([row]), np.zeros((1, WIDTH), np.float32), 0, 0)
        cache.find(np.array([2]), 0)
    return held_rows(cache, 30)


class NoSecondChance(RowCache):
    def find(self, rows, oldest):
        marks = self.marks.copy()
        hit = super().find(rows, oldest)
        self.marks[:] = marks
        return hit


def test_a_row_in_use_survives_rows_that_are_not():
    assert survivors(RowCache) == {2, 27, 28, 29}
    assert 2 not in survivors(NoSecondChance)


def test_a_row_that_is_not_held_cannot_be_read():
    cache = RowCache(2, WIDTH, np.float32)
    cache.store(np.array([7]), np.ones((1, WIDTH), np.float32), 0, 0)
    with pytest.raises(KeyError, match="row 5"):
        cache.read(np.array([7, 5]), np.empty((2, WIDTH), np.float32))
    with pytest.raises(ValueError, match="one row at least"):
        RowCache(0, WIDTH, np.float32)


def test_a_dropped_row_is_read_no_more_until_it_comes_again():
    cache = RowCache(4, WIDTH, np.float32)
    for row, version, counted in ((0, 1, 9), (1, 5, 2), (2, 5, 9), (3, 1, 1)):
        cache.store(np.array([row]), np.full((1, WIDTH), row, np.float32), version, counted)
    cache.drop(version=3, counted=4, lo=0, hi=3)
    assert cache.find(np.arange(4), 0).tolist() == [False, False, True, True]
    assert (cache.oldest_version(), cache.oldest_counted(0, 0, 3)) == (1, 9)
    cache.store(np.array([0]), np.ones((1, WIDTH), np.float32), 0, 0)
    assert cache.find(np.arange(4), 0).tolist() == [True, False, True, True] and len(cache) == 4
