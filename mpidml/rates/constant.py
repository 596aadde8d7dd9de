"""Keep the learning rate: factor 1."""

from __future__ import annotations

from mpidml.rates.base import Factor


class Constant(Factor):
    """Change nothing."""

    def at(self, it: int) -> float:
        """Return 1."""
        return 1.0

    def words(self) -> str:
        """Say that it stays."""
        return "constant"
