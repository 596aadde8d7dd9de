"""Multiply the learning rate by gamma with every global batch: gamma^it."""

from __future__ import annotations

from mpidml.rates.base import Factor, between


class Exponential(Factor):
    """Fall by the same share with each clock; 0 <= gamma <= 1."""

    def __init__(self, gamma: float = 0.999) -> None:
        self.gamma = between("gamma", gamma)

    def at(self, it: int) -> float:
        """Return gamma^it."""
        return self.gamma**it

    def words(self) -> str:
        """Say by how much it falls."""
        return f"times {self.gamma:g} every clock"
