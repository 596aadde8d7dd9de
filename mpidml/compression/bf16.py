"""Send the upper half of a float32: its range, with 8 bits of precision (bfloat16). What rounding leaves is sent later."""

from __future__ import annotations

from typing import ClassVar

from mpidml.compression.base import HalfPrecision


class Bf16(HalfPrecision):
    """Round to nearest, through float32; values beyond 3.39e38 are sent as that, and the rest later."""

    name: ClassVar[str] = "bf16"
