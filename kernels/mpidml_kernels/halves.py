"""Turn float32 into IEEE halves and back: by the instructions that a CPU has for it, or where it has none by the bits. Both are the same to the bit, NaN's payload aside.

Called from compiled code. Half a cycle a value by instructions, some twenty operations by the bits.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import extending, njit, types

f32, u32 = np.float32, np.uint32
intrinsic: Any = extending.intrinsic  # which is typed as if `typing` were the caller's to give


@intrinsic
def by_instruction(typing, bits):
    """Return the half next to the float32 with these bits, nearest even, as a uint32."""

    def generate(context, builder, signature, arguments):
        half = builder.fptrunc(builder.bitcast(arguments[0], ir.FloatType()), ir.HalfType())
        return builder.zext(builder.bitcast(half, ir.IntType(16)), ir.IntType(32))

    return types.uint32(types.uint32), generate


@intrinsic
def from_instruction(typing, half):
    """Return the half with these 16 bits as float32."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(builder.trunc(arguments[0], ir.IntType(16)), ir.HalfType()), ir.FloatType())

    return types.float32(types.uint32), generate


@njit(error_model="numpy")
def by_bits(bits):
    """Return the half next to the float32 with these bits, nearest even, as a uint32."""
    low = u32(bits & u32(0x7FFFFFFF))
    normal = u32(u32(u32(low + u32(0xFFF) + u32(u32(low >> u32(13)) & u32(1))) >> u32(13)) - u32(0x1C000))
    subnormal = u32(f32(low.view(f32) + f32(0.5)).view(u32) - u32(0x3F000000))  # the sum rounds where a subnormal half does
    return u32((subnormal if low < u32(0x38800000) else normal) | u32(u32(bits >> u32(16)) & u32(0x8000)))


@njit(error_model="numpy")
def from_bits(half):
    """Return a half as float32: shifted into place; a subnormal one by a subtraction that leaves its leading zeros behind."""
    low = u32(u32(u32(half) & u32(0x7FFF)) << u32(13))
    normal = u32(low + (u32(0x38000000) if low < u32(0x0F800000) else u32(0x70000000)))  # the larger: infinity and NaN
    subnormal = f32(u32(low + u32(0x38800000)).view(f32) - f32(2.0**-14)).view(u32)
    bits = subnormal if low < u32(0x00800000) else normal
    return u32(bits | u32(u32(u32(half) & u32(0x8000)) << u32(16))).view(f32)


def has_instructions() -> bool:
    """Tell whether this CPU converts by itself; where it does not, what LLVM would call in its place may not be there."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(binding.get_host_cpu_features().get("f16c"))
    return platform.machine().lower() in ("aarch64", "arm64")


to_half, from_half = (by_instruction, from_instruction) if has_instructions() else (by_bits, from_bits)
