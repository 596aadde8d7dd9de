"""Take a mean to the last bit, in whatever order and in whatever portions its values come.

    value = mantissa (53 bits) * 2^exponent        the mantissas of each exponent are summed as whole numbers: no rounding before the end
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LOW, AT_ONCE = 26, 1 << 14
_LEAST, _N = -1074, 2100  # exponents of float64, as frexp gives them


class ExactMean:
    """Add values and other sums, then ask for the mean, rounded once; 0 where there are none."""

    def __init__(self) -> None:
        self.n = 0
        self.sums = np.zeros((2, _N), np.int64)

    def add(self, values: Array) -> None:
        """Add finite float64 values (n,)."""
        for lo in range(0, len(values), AT_ONCE):
            mantissa, exponent = np.frexp(values[lo : lo + AT_ONCE])
            whole, bins = np.ldexp(mantissa, 53).astype(np.int64), exponent - _LEAST
            for row, part in zip(self.sums, (whole >> LOW, whole & ((1 << LOW) - 1)), strict=True):
                row += np.bincount(bins, part, _N).astype(np.int64)
        self.n += len(values)

    def merge(self, other: ExactMean) -> None:
        """Add what another has seen."""
        self.sums += other.sums
        self.n += other.n

    def mean(self) -> float:
        """Return the mean."""
        if not self.n:
            return 0.0
        total = sum(((high << LOW) + low) << b for b, (high, low) in enumerate(self.sums.T.tolist()) if high or low)
        return total / (self.n << (53 - _LEAST))
