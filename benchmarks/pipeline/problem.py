"""Say what both sides are given: the net and its data, as `data_parallel/problem.py` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

N_COMPARED = 5
"""Steps whose losses must agree, which are not timed."""
LOSS_TOLERANCE = 1e-3


def widths(given: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the net's widths, of its input first, from its weights."""
    n = sum(name.endswith(".weight") for name in given)
    return (given["layers.0.weight"].shape[0], *(given[f"layers.{i}.weight"].shape[1] for i in range(n)))
