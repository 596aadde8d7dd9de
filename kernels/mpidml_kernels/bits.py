"""Look at a number's bits by its type, so that one loop serves float32 and float64, and draw noise by key and index."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

f32, u32, u64 = np.float32, np.uint32, np.uint64


def magnitude(x):
    raise NotImplementedError("compiled code only")


@overload(magnitude, inline="always")
def _magnitude_of(x):
    """Return the bits of |x| as a whole number: ordered like |x|, with infinity above all numbers and NaN above infinity."""
    if x == types.float32:
        return lambda x: u32(f32(x).view(u32) & u32(0x7FFFFFFF))
    return lambda x: u64(np.float64(x).view(u64) & u64(0x7FFFFFFFFFFFFFFF))


def number(like, bits):
    raise NotImplementedError("compiled code only")


@overload(number, inline="always")
def _number_of(like, bits):
    """Return the float of the type of `like` whose bits these are."""
    if like == types.float32:
        return lambda like, bits: u32(bits).view(f32)
    return lambda like, bits: u64(bits).view(np.float64)


@njit(error_model="numpy")
def _mix(x):
    x = u32(u32(x ^ u32(x >> u32(16))) * u32(0x7FEB352D))
    x = u32(u32(x ^ u32(x >> u32(15))) * u32(0x846CA68B))
    return u32(x ^ u32(x >> u32(16)))


@njit(error_model="numpy")
def draw(low, high, index):
    """Return 32 bits of noise for an index below 2^32 under the two halves of a 64-bit key."""
    return _mix(u32(_mix(u32(index + low)) ^ high))
