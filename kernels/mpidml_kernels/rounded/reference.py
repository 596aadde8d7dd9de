"""Say what rounding to fewer bits means. x, r, out: (n,), one dtype; x is given, r holds what was not sent before, v = x + r.

Every `encode` leaves r = v - decoded and tells whether all of v was finite; if not, nothing of the result means anything. What is beyond the
largest number of a format is sent as that number, and the rest stays in r.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LARGEST_FP16 = 65504.0
LARGEST_BF16 = float.fromhex("0x1.fep127")
SMALLEST_SCALE = {np.dtype(np.float32): np.float32(2.0**-119), np.dtype(np.float64): np.float64(2.0**-1015)}
"""Below it a block's largest magnitude over 127, or 127 over it, would be no normal number; then the block's codes are 0."""


def bf16_encode(x: Array, r: Array, codes: Array) -> bool:
    """Round v to the nearest bfloat16 (through float32; a tie goes to the even one) into `codes`, uint16 (n,)."""
    r += x
    bits = np.clip(r, -LARGEST_BF16, LARGEST_BF16).astype(np.float32).view(np.uint32)
    codes[...] = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    finite = bool(np.isfinite(r).all())
    r -= (codes.astype(np.uint32) << 16).view(np.float32)
    return finite


def bf16_decode_add(codes: Array, out: Array) -> None:
    """Compute out += the values of `codes`."""
    out += (codes.astype(np.uint32) << 16).view(np.float32)


def fp16_encode(x: Array, r: Array, codes: Array) -> bool:
    """Round v to the nearest IEEE half (through float32; a tie goes to the even one; subnormal halves are kept) into `codes`, uint16 (n,)."""
    r += x
    halves = np.clip(r, -LARGEST_FP16, LARGEST_FP16).astype(np.float32).astype(np.float16)
    codes[...] = halves.view(np.uint16)
    finite = bool(np.isfinite(r).all())
    r -= halves
    return finite


def fp16_decode_add(codes: Array, out: Array) -> None:
    """Compute out += the values of `codes`."""
    out += codes.view(np.float16)


def int8_encode(x: Array, r: Array, block: int, units: Array, codes: Array) -> bool:
    """Round v to whole multiples, -127 to 127, of a unit for each `block` values: its largest magnitude / 127.

    units: (ceil(n / block),) of the dtype of x; codes: int8 (n,).
    """
    r += x
    for i in range(units.size):
        v = r[i * block : (i + 1) * block]
        largest = np.abs(v).max()
        small = largest < SMALLEST_SCALE[r.dtype]
        units[i] = 0 if small else largest / r.dtype.type(127)
        c = np.zeros_like(v) if small else np.rint(v * (r.dtype.type(127) / largest))
        v -= c * units[i]
        codes[i * block : (i + 1) * block] = c
    return bool(np.isfinite(units).all())


def int8_decode_add(codes: Array, units: Array, block: int, out: Array) -> None:
    """Compute out += code x unit of its block."""
    out += codes * np.repeat(units, block)[: out.size]
