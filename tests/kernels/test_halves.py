"""Hold both ways to turn float32 into halves and back to NumPy's and to each other: every half, its neighbours and ties, and floats of every magnitude."""

from __future__ import annotations

import numpy as np
import pytest
from mpidml_kernels import halves
from numba import njit
from numpy.typing import NDArray

BITS = np.concatenate([np.arange(0, 1 << 32, 4099, np.uint32), *(np.arange(1 << 16, dtype=np.uint32) << 16 | low for low in (0, 0xFFF, 0x1000, 0x1001, 0x3000, 0xFFFF))])
FLOATS = BITS[~np.isnan(BITS.view(np.float32))]
HALVES = np.arange(1 << 16, dtype=np.uint32)
HALVES = HALVES[~np.isnan(HALVES.astype(np.uint16).view(np.float16))]

TO = [halves.by_bits, halves.by_instruction][: 1 + halves.has_instructions()]  # LLVM may have nothing to call where the CPU has no instruction
FROM = [halves.from_bits, halves.from_instruction][: 1 + halves.has_instructions()]


@njit
def truncated(bits):  # type: ignore[no-untyped-def]
    """Broken: rounds towards zero."""
    return np.uint32(halves.by_bits(np.uint32(bits & np.uint32(0xFFFFE000))))


@njit
def away(bits):  # type: ignore[no-untyped-def]
    """Broken: a tie goes away from zero."""
    return np.uint32(halves.by_bits(np.uint32(bits | np.uint32(1))))


@njit
def flushed(half):  # type: ignore[no-untyped-def]
    """Broken: takes a subnormal half for zero."""
    return halves.from_bits(np.uint32(half if half & np.uint32(0x7C00) else half & np.uint32(0x8000)))


def to_halves(way: object) -> NDArray[np.uint32]:
    @njit
    def all_of(bits, out):  # type: ignore[no-untyped-def]
        for i in range(bits.size):
            out[i] = way(bits[i])  # type: ignore[operator]

    out = np.zeros_like(FLOATS)
    all_of(FLOATS, out)
    return out


def from_halves(way: object) -> NDArray[np.float32]:
    @njit
    def all_of(given, out):  # type: ignore[no-untyped-def]
        for i in range(given.size):
            out[i] = way(given[i])  # type: ignore[operator]

    out = np.zeros(HALVES.size, np.float32)
    all_of(HALVES, out)
    return out


def rounds(way: object) -> bool:
    """Tell whether every finite float that a half can hold, and every other, becomes NumPy's half."""
    within = np.abs(FLOATS.view(np.float32)) <= np.float32(65504)  # kernels clip what is beyond
    expected = FLOATS[within].view(np.float32).astype(np.float16).view(np.uint16)
    return bool(np.array_equal(to_halves(way)[within], expected))


def widens(way: object) -> bool:
    """Tell whether every half becomes NumPy's float, to the sign of zero."""
    expected = HALVES.astype(np.uint16).view(np.float16).astype(np.float32)
    return bool(np.array_equal(from_halves(way).view(np.uint32), expected.view(np.uint32)))


@pytest.mark.parametrize("way", TO)
def test_a_float_becomes_the_half_next_to_it_of_two_the_even_one(way: object) -> None:
    assert rounds(way)


@pytest.mark.parametrize("way", FROM)
def test_a_half_becomes_the_float_that_it_is(way: object) -> None:
    assert widens(way)


@pytest.mark.parametrize("broken", [truncated, away])
def test_the_check_catches_a_half_that_is_not_the_next(broken: object) -> None:
    assert not rounds(broken)


def test_the_check_catches_a_subnormal_that_is_flushed() -> None:
    assert not widens(flushed)
