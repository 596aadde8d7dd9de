"""Compute the kernels of low-rank products with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import njit

from mpidml_kernels.jit import REDUCTION, kernel


@njit(error_model="numpy", fastmath=REDUCTION)
def _dot(a, b):
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@kernel("void(T[:,::1])")
def orthonormalise(p):
    zero = p.dtype.type(0)
    rounding = p.dtype.type(100) * p.dtype.type(np.finfo(p.dtype).eps)
    for i in range(p.shape[0]):
        row = p[i]
        before = np.sqrt(_dot(row, row))
        for _ in range(2):
            for j in range(i):
                earlier = p[j]
                part = _dot(row, earlier)
                for c in range(row.size):
                    row[c] -= part * earlier[c]
        norm = np.sqrt(_dot(row, row))
        keep = norm > rounding * before
        for c in range(row.size):
            row[c] = row[c] / norm if keep else zero


@kernel("void(R2, R2, f8, T[:,::1])")
def add_product(p, q, sign, v):
    s = v.dtype.type(sign)
    for i in range(v.shape[0]):
        row = v[i]
        for k in range(p.shape[0]):
            factor, other = s * p[k, i], q[k]
            for j in range(row.size):
                row[j] += factor * other[j]
