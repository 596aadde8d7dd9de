"""Let the learning rate fall as a power of time: (1 + gamma it)^-power."""

from __future__ import annotations

import math

from mpidml.rates.base import Factor, between


class Inv(Factor):
    """Fall ever more slowly, as Robbins and Monro (1951) ask where 1/2 < power <= 1; gamma, power >= 0."""

    def __init__(self, gamma: float = 1e-4, power: float = 0.75) -> None:
        self.gamma = between("gamma", gamma, most=math.inf)
        self.power = between("power", power, most=math.inf)

    def at(self, it: int) -> float:
        """Return (1 + gamma it)^-power."""
        return float((1.0 + self.gamma * it) ** -self.power)

    def words(self) -> str:
        """Say the formula."""
        return f"times (1 + {self.gamma:g} clock)^-{self.power:g}"
