"""Hold rows out for testing or validation, drawn by the seed alone, so that every rank holds out the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml.core import rng
from mpidml.core.errors import UserError

Array = np.ndarray[Any, Any]


def hold_out(n: int, fraction: float, seed: int, purpose: str = "hold-out") -> tuple[Array, Array]:
    """Part range(n) into training rows and others, drawn by (seed, purpose): two sorted int64 arrays that together hold each row once.

    round(n * fraction) rows are held out, at least one when fraction > 0 and n > 1, and at least one row is left to train on.
    UserError for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UserError(f"hold-out: fraction {fraction} is outside [0, 1); give a part of the rows, such as 0.2")
    n_test = min(max(1, round(n * fraction)), n - 1) if fraction > 0 and n > 1 else 0
    order = rng.stream(seed, purpose).permutation(n).astype(np.int64, copy=False)
    return np.sort(order[n_test:]), np.sort(order[:n_test])
