"""Multiply the learning rate by gamma every `size` global batches: gamma^floor(it / size)."""

from __future__ import annotations

from mpidml.rates.base import Factor, between, whole


class Step(Factor):
    """Fall in steps; size >= 1, 0 <= gamma <= 1."""

    def __init__(self, size: int = 1000, gamma: float = 0.1) -> None:
        self.size = whole("size", size, 1)
        self.gamma = between("gamma", gamma)

    def at(self, it: int) -> float:
        """Return gamma^floor(it / size)."""
        return self.gamma ** (it // self.size)

    def words(self) -> str:
        """Say how far it falls, and how often."""
        return f"times {self.gamma:g} every {self.size} clocks"
