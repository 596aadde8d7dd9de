"""Compute the packed codes with Numba; their meaning is in reference.py. Without any fast-math, but in sums: r must be what the receiver will miss, to the bit.

A loop that packs reads one array and writes another, and the residual has a loop of its own over a block that is in the cache: so both vectorise.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import njit

from mpidml_kernels.bits import draw, magnitude, number
from mpidml_kernels.jit import EXACT, kernel
from mpidml_kernels.lanes import fetch, pack_three

u8, u32, u64, i32 = np.uint8, np.uint32, np.uint64, np.int32
SUM = {"reassoc", "nsz"}


@njit(error_model="numpy", fastmath=SUM)
def _add_and_square(rs, xs):
    """Compute rs += xs and return the sum of its squares."""
    total = 0.0
    for i in range(rs.size):
        v = rs[i] + xs[i]
        rs[i] = v
        total += np.float64(v) * np.float64(v)
    return total


@njit(error_model="numpy", fastmath=SUM)
def _squares(xs):
    total = 0.0
    for i in range(xs.size):
        total += np.float64(xs[i]) * np.float64(xs[i])
    return total


@njit(error_model="numpy", fastmath=SUM)
def _add_and_measure(rs, xs):
    """Compute rs += xs and return the sum of its magnitudes."""
    total = rs.dtype.type(0)
    for i in range(rs.size):
        v = rs[i] + xs[i]
        rs[i] = v
        total += abs(v)
    return total


@njit(error_model="numpy")
def _largest(xs):
    top = magnitude(xs.dtype.type(0))
    for i in range(xs.size):
        top = max(top, magnitude(xs[i]))
    return number(xs.dtype.type(0), top)


@njit(error_model="numpy")
def _bit(v, zero, place):
    return u32(u32(1) << place) if v >= zero else u32(0)


@njit(error_model="numpy")
def _ternary(v, threshold, place):
    return u32(u32(1) << place) if v >= threshold else (u32(u32(3) << place) if v <= -threshold else u32(0))


@njit(error_model="numpy")
def _vote(v, zero, low, high, index):
    return u32(draw(low, high, index) >> u32(31)) if v == zero else (u32(1) if v > zero else u32(0))


@njit(error_model="numpy")
def _pack_signs(v, codes):
    zero = v.dtype.type(0)  # a comparison with a whole number would be one in float64
    n_groups = v.size // 512
    for g in range(n_groups):
        vs, cs = v[g * 512 : g * 512 + 512], codes[g * 64 : g * 64 + 64]
        for i in range(cs.size):
            low = _bit(vs[i], zero, u32(0)) | _bit(vs[i + 64], zero, u32(1)) | _bit(vs[i + 128], zero, u32(2)) | _bit(vs[i + 192], zero, u32(3))
            high = _bit(vs[i + 256], zero, u32(4)) | _bit(vs[i + 320], zero, u32(5)) | _bit(vs[i + 384], zero, u32(6)) | _bit(vs[i + 448], zero, u32(7))
            cs[i] = u8(low | high)
    vs, cs = v[n_groups * 512 :], codes[n_groups * 64 :]
    cs[:] = 0
    for i in range(vs.size):
        cs[i % cs.size] |= u8(_bit(vs[i], zero, u32(i // cs.size)))


@njit(error_model="numpy")
def _fetch(x, r, at, n_lines):
    """Ask for so many cache lines of both arrays from `at` on; return where the next ones begin."""
    for _ in range(n_lines):
        fetch(x, at)
        fetch(r, at)
        at += 64 // r.itemsize
    return at


@kernel("b1(R1, T[::1], i8, T[::1], u1[::1])", EXACT)
def one_bit_encode(x, r, block, units, codes):
    """Ask for the next block while this one, which the first of the caches holds, is packed."""
    zero, check = r.dtype.type(0), r.dtype.type(0)
    n_lines = min(block * r.itemsize // 64, 64)
    for b in range(units.size):
        rs = r[b * block : (b + 1) * block]
        unit = _add_and_measure(rs, x[b * block : (b + 1) * block]) / r.dtype.type(rs.size)
        units[b] = unit
        check += unit - unit  # NaN as soon as one is not finite
        _fetch(x, r, (b + 1) * block, n_lines)
        _pack_signs(rs, codes[b * block // 8 : (b * block + rs.size + 7) // 8])
        for i in range(rs.size):
            v = rs[i]
            rs[i] = v - (unit if v >= zero else -unit)
    return check == zero


@njit(error_model="numpy")
def _any_zero(xs):
    found = u32(0)
    for i in range(xs.size):
        found = u32(found | (u32(1) if xs[i] == xs.dtype.type(0) else u32(0)))
    return found != u32(0)


@kernel("b1(R1, u8, u1[::1])", EXACT)
def vote_encode(x, key, codes):
    """Toss coins only in a group that has a zero."""
    low, high, zero = u32(key & u64(0xFFFFFFFF)), u32(key >> u64(32)), x.dtype.type(0)
    for start in range(0, x.size, 512):
        xs, cs = x[start : start + 512], codes[start // 8 : start // 8 + 64]
        if not _any_zero(xs):
            _pack_signs(xs, cs)
        else:
            cs[:] = 0
            for i in range(xs.size):
                cs[i % cs.size] |= u8(u32(_vote(xs[i], zero, low, high, u32(start + i)) << u32(i // cs.size)))
    return np.isfinite(_largest(x))


@kernel("void(Array(u1,1,'C',True), R1, i8, T[::1])", EXACT)
def bits_decode_add(codes, units, block, out):
    for b in range(units.size):
        unit = units[b]
        for start in range(b * block, min((b + 1) * block, out.size), 512):
            ys = out[start : min(start + 512, (b + 1) * block)]
            n_lanes = min(64, (ys.size + 7) // 8)
            cs = codes[start // 8 : start // 8 + n_lanes]
            for j in range(8):
                zs = ys[j * n_lanes : (j + 1) * n_lanes]
                bit = u32(u32(1) << u32(j & 7))
                for i in range(zs.size):
                    zs[i] += unit if u32(cs[i]) & bit else -unit


@kernel("f8(R1, T[::1], f8, u1[::1])", EXACT)
def two_bit_encode(x, r, threshold, codes):
    t, zero = r.dtype.type(threshold), r.dtype.type(0)
    total = 0.0
    n_groups = r.size // 256
    for g in range(n_groups):
        rs, cs = r[g * 256 : g * 256 + 256], codes[g * 64 : g * 64 + 64]
        total += _add_and_square(rs, x[g * 256 : g * 256 + 256])
        for i in range(cs.size):
            low = _ternary(rs[i], t, u32(0)) | _ternary(rs[i + 64], t, u32(2))
            cs[i] = u8(low | _ternary(rs[i + 128], t, u32(4)) | _ternary(rs[i + 192], t, u32(6)))
        for i in range(rs.size):
            v = rs[i]
            rs[i] = v - (t if v >= t else (-t if v <= -t else zero))
    rs, cs = r[n_groups * 256 :], codes[n_groups * 64 :]
    total += _add_and_square(rs, x[n_groups * 256 :])
    cs[:] = 0
    for i in range(rs.size):
        v = rs[i]
        cs[i % cs.size] |= u8(_ternary(v, t, u32(2 * (i // cs.size))))
        rs[i] = v - (t if v >= t else (-t if v <= -t else zero))
    return total


@njit(error_model="numpy")
def _pack_tail(rs, t, cs):
    """Pack what exceeds t of fewer than 256 values; return the sum of its magnitudes, in float64, and how many they are."""
    total, n_above = 0.0, 0
    cs[:] = 0
    for i in range(rs.size):
        size = abs(rs[i])
        if size > t:
            cs[i % cs.size] |= u8(u32(u32(1) if rs[i] > t else u32(3)) << u32(2 * (i // cs.size)))
            total += np.float64(size)
            n_above += 1
    return total, n_above


@kernel("b1(R1, T[::1], i8, T[::1], u1[::1])", EXACT)
def adaptive_encode(x, r, block, units, codes):
    """Meanwhile, as a block is looked at three times and comes from memory once, ask for half of the next one."""
    zero, check = r.dtype.type(0), r.dtype.type(0)
    for b in range(units.size):
        vs, xs = r[b * block : (b + 1) * block], x[b * block : (b + 1) * block]
        packed = codes[b * block // 4 : (b * block + vs.size + 3) // 4]
        whole, ahead = vs.size // 256 * 256, (b + 1) * block
        total = 0.0
        for at in range(0, vs.size, 1024):  # the type is wide enough for a sum of so few
            total += np.float64(_add_and_measure(vs[at : at + 1024], xs[at : at + 1024]))
        t = r.dtype.type(0.7 * total / vs.size)
        total, n_above = _pack_tail(vs[whole:], t, packed[whole // 4 :])
        for at in range(0, whole, 1024):
            ahead = _fetch(x, r, ahead, 16)
            sent, n_sent = pack_three(vs[at : min(at + 1024, whole)], t, packed[at // 4 :])
            total += np.float64(sent)
            n_above += n_sent
        unit = r.dtype.type(total / max(n_above, 1)) + (t - t)  # NaN if one is not finite
        units[b] = unit
        check += unit - unit
        for at in range(0, vs.size, 256):
            ahead = _fetch(x, r, ahead, 4)
            rs = vs[at : at + 256]
            for i in range(rs.size):
                v = rs[i]
                rs[i] = v - (np.copysign(unit, v) if abs(v) > t else zero)
    return check == zero


@njit(error_model="numpy")
def _pack_rounded(xs, cs, inverse, levels, keys, start, place, mask):
    """Add the codes of xs to the bytes cs, one each; `start` is the index of the first."""
    scale, zero = xs.dtype.type(2.0**-24), xs.dtype.type(0)
    for i in range(cs.size):
        v = xs[i]
        noise = xs.dtype.type(i32(draw(keys[0], keys[1], u32(start + i)) >> u32(8))) * scale
        level = np.floor(abs(v) * inverse + noise)
        level = levels if level > levels else level
        code = u32(i32(-level if v < zero else level)) & mask
        cs[i] |= u8(u32(code << place))


@kernel("b1(R1, u8, i8, i8, b1, T[::1], u1[::1])", EXACT)
def stochastic_encode(x, key, block, bits, euclidean, units, codes):
    zero, check = x.dtype.type(0), x.dtype.type(0)
    levels, mask, per_byte = x.dtype.type((1 << (bits - 1)) - 1), u32((1 << bits) - 1), 8 // bits
    smallest = x.dtype.type(np.finfo(x.dtype).tiny) * x.dtype.type(128)
    keys = (u32(key & u64(0xFFFFFFFF)), u32(key >> u64(32)))
    codes[:] = 0
    for b in range(units.size):
        xs = x[b * block : (b + 1) * block]
        norm = x.dtype.type(np.sqrt(_squares(xs))) if euclidean else _largest(xs)
        small = norm < smallest
        unit, inverse = zero if small else norm / levels, zero if small else levels / norm
        units[b] = unit
        check += unit - unit  # NaN as soon as one is not finite
        if check != zero:
            return False
        for start in range(0, xs.size, 64 * per_byte):
            n_lanes = min(64, (xs.size - start + per_byte - 1) // per_byte)
            first = b * block + start
            cs = codes[first // per_byte : first // per_byte + n_lanes]
            for j in range(per_byte):
                ys = xs[start + j * n_lanes : start + (j + 1) * n_lanes]
                _pack_rounded(ys, cs[: ys.size], inverse, levels, keys, u32(first + j * n_lanes), u32(u32(j * bits) & u32(7)), mask)
    return True


@kernel("void(Array(u1,1,'C',True), R1, i8, i8, T[::1])", EXACT)
def codes_decode_add(codes, units, block, bits, out):
    per_byte, down = 8 // bits, i32((32 - bits) & 31)
    for b in range(units.size):
        unit = units[b]
        for start in range(b * block, min((b + 1) * block, out.size), 64 * per_byte):
            ys = out[start : min(start + 64 * per_byte, (b + 1) * block)]
            n_lanes = min(64, (ys.size + per_byte - 1) // per_byte)
            cs = codes[start // per_byte : start // per_byte + n_lanes]
            for j in range(per_byte):
                zs = ys[j * n_lanes : (j + 1) * n_lanes]
                up = u32(u32(32 - bits * (j + 1)) & u32(31))
                for i in range(zs.size):
                    zs[i] += out.dtype.type(i32(i32(u32(u32(cs[i]) << up)) >> down)) * unit
