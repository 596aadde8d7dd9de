"""Say what the packed codes mean. x, r, out: (n,), one dtype; codes: uint8 (ceil(n bits / 8),), laid out as the family says; keys: np.uint64.

v = x + r, and r = v - decoded afterwards, where there is an r. An `encode` tells whether all of its values were finite; if not, nothing of its result
means anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml_kernels.packed import GROUP
from mpidml_kernels.rounded.reference import SMALLEST_SCALE

Array = np.ndarray[Any, Any]


def places(n: int, bits: int) -> tuple[Array, Array]:
    """Return for each of n values the byte in which its code lies, and by how many bits it is shifted there."""
    per_byte = 8 // bits
    i = np.arange(n)
    group, within = i // (GROUP * per_byte), i % (GROUP * per_byte)
    in_group = np.minimum(n - group * GROUP * per_byte, GROUP * per_byte)
    lanes = -(-in_group // per_byte)
    return group * GROUP + within % lanes, within // lanes * bits


def pack(values: Array, bits: int, codes: Array) -> None:
    """Write whole numbers as `bits` bits each."""
    byte, shift = places(values.size, bits)
    codes[...] = 0
    np.bitwise_or.at(codes, byte, ((values.astype(np.int64) & ((1 << bits) - 1)) << shift).astype(np.uint8))


def unpack(codes: Array, n: int, bits: int) -> Array:
    """Return what `pack` wrote, as numbers from 0 to 2^bits - 1."""
    byte, shift = places(n, bits)
    return np.asarray((codes[byte].astype(np.int64) >> shift) & ((1 << bits) - 1))


def draw(key: np.uint64, index: Array) -> Array:
    """Return 32 bits of noise for each index below 2^32: the same on every machine and for every cut of the loop."""

    def mix(x: Array) -> Array:
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return np.asarray(x ^ (x >> np.uint32(16)))

    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    return mix(mix(index.astype(np.uint32) + low) ^ high)


def one_bit_encode(x: Array, r: Array, block: int, units: Array, codes: Array) -> bool:
    """Send whether v >= 0, and for each `block` values (a multiple of 512) the mean of |v|: the unit, of which each is sent plus or minus one.

    units: (ceil(n / block),) of the dtype of x (Karimireddy et al., ICML 2019, section 4).
    """
    r += x
    pack(r >= 0, 1, codes)
    for i in range(units.size):
        v = r[i * block : (i + 1) * block]
        units[i] = np.abs(v).sum() / r.dtype.type(v.size)
        v -= np.where(v >= 0, units[i], -units[i])
    return bool(np.isfinite(units).all())


def vote_encode(x: Array, key: np.uint64, codes: Array) -> bool:
    """Send whether x > 0; for 0 a coin decides."""
    coin = draw(key, np.arange(x.size)) >> np.uint32(31)
    pack(np.where(x == 0, coin, x > 0), 1, codes)
    return bool(np.isfinite(x).all())


def bits_decode_add(codes: Array, units: Array, block: int, out: Array) -> None:
    """Compute out += the unit of its block where the bit is 1, out -= it where the bit is 0."""
    unit = units[np.arange(out.size) // block]
    out += np.where(unpack(codes, out.size, 1), unit, -unit)


def two_bit_encode(x: Array, r: Array, threshold: float, codes: Array) -> float:
    """Send +threshold where v >= threshold, -threshold where v <= -threshold, else 0; return the sum of v^2 in float64, as it was before.

    The sum is not finite if v was not (or, in float64, if v was beyond 1e150). Codes are 2 bits, in two's complement.
    """
    r += x
    t = r.dtype.type(threshold)
    total = float(np.sum(np.square(r, dtype=np.float64)))
    c = np.where(r >= t, r.dtype.type(1), -(r <= -t).astype(r.dtype))
    pack(c, 2, codes)
    r -= c * t
    return total


def adaptive_encode(x: Array, r: Array, block: int, units: Array, codes: Array) -> bool:
    """Send plus or minus a unit where |v| exceeds 0.7 of the mean magnitude of its block, else 0; the unit is the mean of those |v| that exceed it.

    block: a multiple of 256; units: (ceil(n / block),). For a threshold near this one the unit leaves the least of a bell-shaped v (Li et al. 2016).
    Codes are as those of `two_bit_encode`. Returns whether all was finite.
    """
    r += x
    c = np.zeros_like(r)
    for i in range(units.size):
        v, part = r[i * block : (i + 1) * block], slice(i * block, (i + 1) * block)
        size = np.abs(v)
        threshold = r.dtype.type(0.7 * float(np.sum(size, dtype=np.float64)) / size.size)
        hit = size > threshold
        units[i] = float(np.sum(size[hit], dtype=np.float64)) / max(int(hit.sum()), 1) if np.isfinite(threshold) else np.nan
        c[part] = np.where(hit, np.sign(v), 0)
        v -= c[part] * units[i]
    pack(c, 2, codes)
    return bool(np.isfinite(units).all())


def stochastic_encode(x: Array, key: np.uint64, block: int, bits: int, euclidean: bool, units: Array, codes: Array) -> bool:
    """Round |x| / unit down or up at random, so that its mean is kept; the unit is a block's norm / (2^(bits - 1) - 1).

    The norm is the Euclidean one or the largest magnitude; block: a multiple of 512; bits: 2 or 4; units: (ceil(n / block),). Noise is drawn by
    (key, index). A block whose norm is below `SMALLEST_SCALE` is sent as 0. Codes are in two's complement.
    """
    levels = x.dtype.type((1 << (bits - 1)) - 1)
    noise = (draw(key, np.arange(x.size)) >> np.uint32(8)).astype(x.dtype) * x.dtype.type(2.0**-24)
    c = np.zeros_like(x)
    for i in range(units.size):
        v, part = x[i * block : (i + 1) * block], slice(i * block, (i + 1) * block)
        norm = x.dtype.type(np.sqrt(np.sum(np.square(v, dtype=np.float64)))) if euclidean else np.abs(v).max()
        small = norm < SMALLEST_SCALE[x.dtype]
        units[i] = 0 if small else norm / levels
        if not small:
            c[part] = np.copysign(np.minimum(np.floor(np.abs(v) * (levels / norm) + noise[part]), levels), v)
    finite = bool(np.isfinite(units).all())
    pack(c if finite else np.zeros_like(x), bits, codes)
    return finite


def codes_decode_add(codes: Array, units: Array, block: int, bits: int, out: Array) -> None:
    """Compute out += code x unit of its block; codes of 2 or 4 bits are in two's complement."""
    c = unpack(codes, out.size, bits)
    out += (c - ((c >> (bits - 1)) << bits)).astype(out.dtype) * units[np.arange(out.size) // block]
