"""Compute the sparse kernels with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import njit

from mpidml_kernels.bits import draw, magnitude, number
from mpidml_kernels.jit import EXACT, kernel
from mpidml_kernels.lanes import N, lowest, reaching

u32, u64, i64 = np.uint32, np.uint64, np.int64
BLOCK = 1024


@kernel("f8(R1, R1, i8, i8[::1])", EXACT)
def kth_magnitude(x, r, k, counts):
    """Settle 11 bits of the magnitude a pass, from the top: count the digits of the values that share what is settled so far."""
    settled = u64(0)
    high = 8 * x.itemsize - 1
    left = k
    while high > 0:
        width = min(11, high)
        shift, mask = u64(high - width), u64((1 << width) - 1)
        counts[:] = 0
        for i in range(x.size):
            bits = u64(magnitude(x[i] + r[i]))
            if bits >> u64(high) == settled:
                counts[(bits >> shift) & mask] += 1
        digit = i64(mask)
        while counts[u64(digit)] < left:
            left -= counts[u64(digit)]
            digit -= 1
        settled = u64(settled << u64(width)) | u64(digit)
        high -= width
    counts[0] = left
    return number(x.dtype.type(0), settled)


@njit(error_model="numpy")
def _reaching(block, start, t):
    """Return what `reaching` does of the fewer than 32 values from `start` on."""
    bits = u32(0)
    for i in range(start, block.size):
        bits = u32(bits | ((u32(0) if abs(block[i]) < t else u32(1)) << u32(i - start)))
    return bits


@kernel("i8(R1, T[::1], f8, i8, T[::1], u4[::1])", EXACT)
def select(x, r, threshold, n_equal, values, ids):
    """Add up a block that the cache holds; compare 32 of its values at once; look at single ones only where there is a hit."""
    t, zero = r.dtype.type(threshold), r.dtype.type(0)
    greatest = r.dtype.type(np.finfo(r.dtype).max)
    n, finite = 0, True
    for first in range(0, r.size, BLOCK):
        block, xs = r[first : first + BLOCK], x[first : first + BLOCK]
        for i in range(block.size):
            block[i] += xs[i]
        for start in range(0, block.size, N):
            hits = reaching(block, start, t) if start + N <= block.size else _reaching(block, start, t)
            while hits != u32(0):
                i = start + lowest(hits)
                hits = u32(hits & u32(hits - u32(1)))
                v = block[i]
                size = abs(v)
                finite = finite and size <= greatest
                n_equal -= size == t
                if n < values.size and (size != t or n_equal >= 0):
                    values[n], ids[n] = v, first + i
                    block[i] = zero
                    n += 1
    values[n:] = zero
    ids[n:] = 0
    return n if finite else -1


@kernel("void(R1, Array(u4,1,'C',True), T[::1])", EXACT)
def scatter_add(values, ids, out):
    for i in range(values.size):
        out[ids[i]] += values[i]


@kernel("b1(R1)", EXACT)
def is_finite(x):
    bad = u32(0)
    greatest = x.dtype.type(np.finfo(x.dtype).max)
    for i in range(x.size):
        bad = u32(bad | (u32(0) if abs(x[i]) <= greatest else u32(1)))
    return bad == u32(0)


@njit(error_model="numpy")
def _drawn(n, k, i, key):
    """Return the place drawn from stretch i, and the stretch's length."""
    start, end = i * n // k, (i + 1) * n // k
    noise = u64(draw(u32(key & u64(0xFFFFFFFF)), u32(key >> u64(32)), u32(i)))
    return u64(start) + (noise * u64(end - start) >> u64(32)), end - start


@kernel("void(T[::1], u8, T[::1])", EXACT)
def strata_move(r, key, values):
    for i in range(values.size):
        at, _ = _drawn(r.size, values.size, i, key)
        values[i] = r[at]
        r[at] = 0


@kernel("void(R1, u8, T[::1])", EXACT)
def strata_take(x, key, values):
    for i in range(values.size):
        at, length = _drawn(x.size, values.size, i, key)
        values[i] = x[at] * x.dtype.type(length)


@kernel("void(R1, u8, T[::1])", EXACT)
def strata_add(values, key, out):
    for i in range(values.size):
        at, _ = _drawn(out.size, values.size, i, key)
        out[at] += values[i]
