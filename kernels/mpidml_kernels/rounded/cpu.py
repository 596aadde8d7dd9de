"""Compute the rounding kernels with Numba; their meaning is in reference.py. Without any fast-math: r must be what the receiver will miss, to the bit."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import njit

from mpidml_kernels.bits import magnitude, number
from mpidml_kernels.halves import from_half, to_half
from mpidml_kernels.jit import EXACT, kernel
from mpidml_kernels.rounded.reference import LARGEST_BF16, LARGEST_FP16

f32, u16, u32, i32 = np.float32, np.uint16, np.uint32, np.int32


@njit(error_model="numpy")
def _clipped(v, limit):
    """Return v within the limit, as the bits of a float32; in this form NaN passes."""
    v = limit if v > limit else v
    return f32(-limit if v < -limit else v).view(u32)


@njit(error_model="numpy")
def _bf16(bits):
    return u32(u32(bits + u32(0x7FFF) + u32(u32(bits >> u32(16)) & u32(1))) >> u32(16))


@kernel("b1(R1, u2[::1])", EXACT)
def bf16_round(x, codes):
    bad, limit, greatest = u32(0), x.dtype.type(LARGEST_BF16), x.dtype.type(np.finfo(x.dtype).max)
    for i in range(codes.size):
        v = x[i]
        bad = u32(bad | (u32(0) if abs(v) <= greatest else u32(1)))
        codes[i] = u16(_bf16(_clipped(v, limit)))
    return bad == u32(0)


@kernel("b1(R1, T[::1], u2[::1])", EXACT)
def bf16_encode(x, r, codes):
    bad, limit, greatest = u32(0), r.dtype.type(LARGEST_BF16), r.dtype.type(np.finfo(r.dtype).max)
    for i in range(codes.size):
        v = x[i] + r[i]
        bad = u32(bad | (u32(0) if abs(v) <= greatest else u32(1)))
        code = _bf16(_clipped(v, limit))
        codes[i] = u16(code)
        r[i] = v - u32(code << u32(16)).view(f32)
    return bad == u32(0)


@kernel("void(Array(u2,1,'C',True), T[::1])", EXACT)
def bf16_decode_add(codes, out):
    for i in range(out.size):
        out[i] += u32(u32(codes[i]) << u32(16)).view(f32)


@kernel("b1(R1, u2[::1])", EXACT)
def fp16_round(x, codes):
    bad, limit, greatest = u32(0), x.dtype.type(LARGEST_FP16), x.dtype.type(np.finfo(x.dtype).max)
    for i in range(codes.size):
        v = x[i]
        bad = u32(bad | (u32(0) if abs(v) <= greatest else u32(1)))
        codes[i] = u16(to_half(_clipped(v, limit)))
    return bad == u32(0)


@kernel("b1(R1, T[::1], u2[::1])", EXACT)
def fp16_encode(x, r, codes):
    bad, limit, greatest = u32(0), r.dtype.type(LARGEST_FP16), r.dtype.type(np.finfo(r.dtype).max)
    for i in range(codes.size):
        v = x[i] + r[i]
        bad = u32(bad | (u32(0) if abs(v) <= greatest else u32(1)))
        code = to_half(_clipped(v, limit))
        codes[i] = u16(code)
        r[i] = v - from_half(code)
    return bad == u32(0)


@kernel("void(Array(u2,1,'C',True), T[::1])", EXACT)
def fp16_decode_add(codes, out):
    for i in range(out.size):
        out[i] += from_half(u32(codes[i]))


@kernel("b1(R1, i8, T[::1], i1[::1])", EXACT)
def int8_round(x, block, units, codes):
    steps, zero = x.dtype.type(127), x.dtype.type(0)
    smallest = x.dtype.type(np.finfo(x.dtype).tiny) * x.dtype.type(128)
    most, greatest = magnitude(zero), magnitude(x.dtype.type(np.finfo(x.dtype).max))
    for b in range(units.size):
        xs, cs = x[b * block : (b + 1) * block], codes[b * block : (b + 1) * block]
        top = magnitude(zero)
        for i in range(xs.size):
            top = max(top, magnitude(xs[i]))
        most = max(most, top)
        largest = number(zero, top)
        small = largest < smallest
        units[b] = zero if small else largest / steps
        inverse = zero if small else steps / largest
        for i in range(cs.size):
            cs[i] = np.int8(i32(np.rint(xs[i] * inverse)))
    return most <= greatest


@kernel("b1(R1, T[::1], i8, T[::1], i1[::1])", EXACT)
def int8_encode(x, r, block, units, codes):
    steps, zero = r.dtype.type(127), r.dtype.type(0)
    smallest = r.dtype.type(np.finfo(r.dtype).tiny) * r.dtype.type(128)
    greatest = magnitude(r.dtype.type(np.finfo(r.dtype).max))
    most = magnitude(zero)
    for b in range(units.size):
        xs, rs, cs = x[b * block : (b + 1) * block], r[b * block : (b + 1) * block], codes[b * block : (b + 1) * block]
        top = magnitude(zero)
        for i in range(rs.size):
            v = rs[i] + xs[i]
            rs[i] = v
            top = max(top, magnitude(v))
        most = max(most, top)
        largest = number(zero, top)
        small = largest < smallest
        unit = zero if small else largest / steps
        inverse = zero if small else steps / largest
        units[b] = unit
        for i in range(cs.size):
            v = rs[i]
            c = np.rint(v * inverse)
            rs[i] = v - c * unit
            cs[i] = np.int8(i32(c))
    return most <= greatest


@kernel("void(Array(i1,1,'C',True), R1, i8, T[::1])", EXACT)
def int8_decode_add(codes, units, block, out):
    for b in range(units.size):
        unit = units[b]
        cs, ys = codes[b * block : (b + 1) * block], out[b * block : (b + 1) * block]
        for i in range(ys.size):
            ys[i] += out.dtype.type(cs[i]) * unit
