"""Send IEEE halves: 11 bits of precision, magnitudes from 6e-8 to 65504. What rounding leaves is sent later."""

from __future__ import annotations

from typing import ClassVar

from mpidml.compression.base import HalfPrecision


class Fp16(HalfPrecision):
    """Round to nearest, through float32; values beyond 65504 are sent as that, and the rest later (without a residual it is lost)."""

    name: ClassVar[str] = "fp16"
