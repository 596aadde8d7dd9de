"""Tell data by a sum over some of it: a run that goes on must learn from the same."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

PRINTED_ROWS = 1024


def of(data: Any) -> str:
    """Return a sum over labels, scaling, and some rows as they are trained on: other data, or the same in another order, have another."""
    found = hashlib.sha256()
    some = data.x[:: len(data.x) // PRINTED_ROWS + 1]
    rows = some.arrays if data.is_sparse else (some,)
    for array in (data.y, data.test_y, data.val_y, data.scaler.offset, data.scaler.factor, *rows):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
