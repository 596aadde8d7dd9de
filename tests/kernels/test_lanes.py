"""Hold what looks at 32 values at once to what it says of each of them, and show for each rule a variant without it that is noticed."""

import numpy as np
import pytest
from mpidml_kernels import cache, lanes
from mpidml_kernels.packed.reference import pack
from numba import njit

from tests.changed import changed

cache.prepare()
BOUND = 0.75
types = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)


def compiled(function):
    """Return a function of lanes.py that Python can call, compiled for what it is called with."""
    n = {"reaching": 3, "lowest": 1, "pack_three": 3, "fetch": 2}[function.__name__]
    made = {
        1: lambda a: function(a),
        2: lambda a, b: function(a, b),
        3: lambda a, b, c: function(a, b, c),
        4: lambda a, b, c, d: function(a, b, c, d),
    }
    return njit(made[n])


def values(dtype, n=300):
    """Return values of both signs, some of them at the bound, on either side of it and at 0."""
    x = np.random.default_rng(0).standard_normal(n).astype(dtype)
    edge = dtype(BOUND)
    return x, [
        edge,
        -edge,
        np.nextafter(edge, dtype(9)),
        -np.nextafter(edge, dtype(9)),
        np.nextafter(edge, dtype(0)),
        dtype(0),
        dtype(-0.0),
        np.finfo(dtype).tiny / 8,
    ]


def wrong_bits(module, dtype):
    """Return of how many values `reaching` says what is not so."""
    x, special = values(dtype)
    x[40:51] = [*special, np.nan, np.inf, -np.inf]
    reaching, wrong = compiled(module.reaching), 0
    for at in (0, 7, 33, 41, 268):
        told = reaching(x, at, dtype(BOUND))
        wrong += sum((told >> i & 1) == (abs(x[at + i]) < dtype(BOUND)) for i in range(32))
    return wrong


def wrong_codes(module, dtype):
    """Return how many bytes, sums and counts of `pack_three` are not what the reference packs, or what NumPy adds up and counts."""
    x, special = values(dtype, 700)
    x[60:68] = special
    x[130] = -1e6
    codes, expected, three, wrong = np.full(175, 255, np.uint8), np.full(175, 255, np.uint8), compiled(module.pack_three), 0
    for n in (0, 255, 256, 700):
        total, count = three(x[:n], dtype(BOUND), codes)
        done = x[: n // 256 * 256]
        above = np.abs(done) > dtype(BOUND)
        pack(np.where(above, np.sign(done), 0), 2, expected[: done.size // 4])
        wrong += int((codes != expected).sum()) + (count != above.sum())
        wrong += not np.isclose(float(total), np.abs(done[above]).astype(np.float64).sum(), rtol=30 * np.finfo(dtype).eps, atol=0)
    return wrong


@types
def test_a_bit_says_whether_a_magnitude_reaches_the_bound_or_is_not_a_number(dtype):
    assert wrong_bits(lanes, dtype) == 0


@types
@pytest.mark.parametrize(
    ("old", "new"), [('unordered(">="', 'ordered(">="'), ('unordered(">="', 'unordered(">"'), ("_, sizes = _take", "sizes, _ = _take")]
)
def test_a_bit_that_says_something_else_is_noticed(old, new, dtype):
    assert wrong_bits(changed(lanes, [(old, new)]), dtype) > 0


@types
def test_three_values_are_packed_as_the_reference_packs_them_with_their_sum_and_count(dtype):
    assert wrong_codes(lanes, dtype) == 0


@types
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('ordered(">", sizes', 'ordered(">=", sizes'), ("k * GROUP", "k * N"), ("(3, 2, 1, 0)", "(0, 1, 2, 3)"), ("bitwidth - 2", "bitwidth - 1"),
        ("builder.select(above, sizes, none)", "sizes"), ("0x5555555555555555", "0x3333333333333333"), ("GROUP - 1", "FEW - 1"),
        ("size.type(GROUP // FEW)", "size.type(1)"),
    ],
)  # fmt: skip
def test_a_packing_without_one_of_its_rules_is_noticed(old, new, dtype):
    assert wrong_codes(changed(lanes, [(old, new)]), dtype) > 0


def test_the_lowest_bit_is_found():
    lowest = compiled(lanes.lowest)
    assert all(lowest(np.uint32(1 << i)) == lowest(np.uint32((1 << 31) | (1 << i))) == i for i in range(32))


@types
def test_fetching_changes_nothing_and_may_look_beyond_the_end(dtype):
    x, _ = values(dtype)
    before, fetch = x.copy(), compiled(lanes.fetch)
    for at in (0, x.size - 1, x.size, x.size + (1 << 40)):
        fetch(x, at)
    assert np.array_equal(x, before)
