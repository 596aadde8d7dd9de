"""A stream is named by what it is for, never by who draws it."""

from itertools import combinations

import numpy as np
import pytest

from mpidml.core import rng

NAMES = [(0, "init"), (1, "init"), (0, "order"), (0, "order", 0), (0, "order", 1), (0, "order", 0, 1), (0, "order", 1, 0), (10, "order"), (1, "0", 0)]


def check_apart(key):
    assert all(key(*a) != key(*b) for a, b in combinations(NAMES, 2))


def test_streams_of_different_names_differ():
    check_apart(rng.key)
    draws = np.array([rng.stream(*name).standard_normal(2000) for name in NAMES])
    correlation = np.corrcoef(draws) - np.eye(len(NAMES))
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_the_check_catches_names_that_are_summed():
    with pytest.raises(AssertionError):
        check_apart(lambda seed, purpose, *index: seed + sum(map(ord, purpose)) + sum(index))


def test_a_stream_gives_the_same_bits_on_every_machine_and_for_every_integer_type():
    assert rng.key(0, "order", 3) == rng.key(np.int32(0), "order", np.uint64(3)) == 0xBC56B77112242599
    assert rng.stream(0, "order", 3).integers(1 << 62) == 3219685545842067015
    assert 0 <= rng.key(-1, "init") < 1 << 64


def test_drawing_from_one_stream_moves_no_other():
    untouched = rng.stream(0, "b").random(4)
    rng.stream(0, "a").random(1000)
    assert np.array_equal(rng.stream(0, "b").random(4), untouched)
