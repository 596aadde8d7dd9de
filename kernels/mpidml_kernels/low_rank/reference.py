"""Say what the kernels of low-rank products mean. p: (k, m), q: (k, n), v: (m, n), one dtype, contiguous."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def orthonormalise(p: Array) -> None:
    """Replace the rows by orthonormal ones of the same span, in their order; a row that the earlier ones span (within 100 roundings) becomes 0.

    Gram and Schmidt's way, each row twice: then the rows are orthogonal to rounding (Giraud et al., 2005).
    """
    for i in range(p.shape[0]):
        before = np.sqrt(p[i] @ p[i])
        for _ in range(2):
            for j in range(i):
                p[i] -= (p[i] @ p[j]) * p[j]
        norm = np.sqrt(p[i] @ p[i])
        p[i] = p[i] / norm if norm > 100 * np.finfo(p.dtype).eps * before else 0


def add_product(p: Array, q: Array, sign: float, v: Array) -> None:
    """Compute v += sign p^T q."""
    v += v.dtype.type(sign) * (p.T @ q)
