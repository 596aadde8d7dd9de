"""Say what rounding to fewer bits means. x, r, out: (n,), one dtype; x is given, r holds what was not sent before, v = x + r.

Every `encode` leaves r = v - decoded; a `round` writes the same codes for x alone. Both tell whether all they rounded was finite; if not, nothing of the
result means anything. What is beyond the largest number of a format is sent as that number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LARGEST_FP16 = 65504.0
LARGEST_BF16 = float.fromhex("0x1.fep127")
SMALLEST_SCALE = {np.dtype(np.float32): np.float32(2.0**-119), np.dtype(np.float64): np.float64(2.0**-1015)}
"""Below it a block's largest magnitude over 127, or 127 over it, would be no normal number; then the block's codes are 0."""


def bf16_round(x: Array, codes: Array) -> bool:
    """Round x to the nearest bfloat16 (through float32; a tie goes to the even one) into `codes`, uint16 (n,)."""
    bits = np.clip(x, -LARGEST_BF16, LARGEST_BF16).astype(np.float32).view(np.uint32)
    codes[...] = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return bool(np.isfinite(x).all())


def bf16_encode(x: Array, r: Array, codes: Array) -> bool:
    """Round v as `bf16_round` does."""
    r += x
    finite = bf16_round(r, codes)
    r -= (codes.astype(np.uint32) << 16).view(np.float32)
    return finite


def bf16_decode_add(codes: Array, out: Array) -> None:
    """Compute out += the values of `codes`."""
    out += (codes.astype(np.uint32) << 16).view(np.float32)


def fp16_round(x: Array, codes: Array) -> bool:
    """Round x to the nearest IEEE half (through float32; a tie goes to the even one; subnormal halves are kept) into `codes`, uint16 (n,)."""
    codes[...] = np.clip(x, -LARGEST_FP16, LARGEST_FP16).astype(np.float32).astype(np.float16).view(np.uint16)
    return bool(np.isfinite(x).all())


def fp16_encode(x: Array, r: Array, codes: Array) -> bool:
    """Round v as `fp16_round` does."""
    r += x
    finite = fp16_round(r, codes)
    r -= codes.view(np.float16)
    return finite


def fp16_decode_add(codes: Array, out: Array) -> None:
    """Compute out += the values of `codes`."""
    out += codes.view(np.float16)


def int8_round(x: Array, block: int, units: Array, codes: Array) -> bool:
    """Round x to whole multiples, -127 to 127, of a unit for each `block` values: its largest magnitude / 127.

    units: (ceil(n / block),) of the dtype of x; codes: int8 (n,).
    """
    for i in range(units.size):
        v = x[i * block : (i + 1) * block]
        largest = np.abs(v).max()
        small = largest < SMALLEST_SCALE[x.dtype]
        units[i] = 0 if small else largest / x.dtype.type(127)
        codes[i * block : (i + 1) * block] = 0 if small else np.rint(v * (x.dtype.type(127) / largest))
    return bool(np.isfinite(units).all())


def int8_encode(x: Array, r: Array, block: int, units: Array, codes: Array) -> bool:
    """Round v as `int8_round` does."""
    r += x
    finite = int8_round(r, block, units, codes)
    r -= codes * np.repeat(units, block)[: r.size]
    return finite


def int8_decode_add(codes: Array, units: Array, block: int, out: Array) -> None:
    """Compute out += code x unit of its block."""
    out += codes * np.repeat(units, block)[: out.size]
