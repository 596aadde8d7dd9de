"""Compute the row kernels with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np

from mpidml_kernels.jit import kernel


@kernel("void(R2, i8[::1], T[:,::1])")
def take(table, ids, out):
    for i in range(out.shape[0]):
        source, target = table[np.uint64(ids[i])], out[i]
        for j in range(target.size):
            target[j] = source[j]


@kernel("void(T[:,::1], i8[::1], R2)")
def put_rows(table, ids, rows):
    for i in range(rows.shape[0]):
        target, source = table[np.uint64(ids[i])], rows[i]
        for j in range(target.size):
            target[j] = source[j]


@kernel("void(T[:,::1], i8[::1], R2)")
def add_rows(table, ids, delta):
    for i in range(delta.shape[0]):
        target, source = table[np.uint64(ids[i])], delta[i]
        for j in range(target.size):
            target[j] += source[j]


@kernel("void(R2, i8[::1], i8[::1], i8[::1], R2, T[:,::1])")
def embed(x, passed, columns, starts, table, out):
    n = table.shape[1]
    for i in range(x.shape[0]):
        for j in range(passed.size):
            out[i, j] = x[i, passed[j]]
        at = passed.size
        for c in range(columns.size):
            source = table[np.uint64(starts[c] + np.int64(x[i, columns[c]]))]
            for j in range(n):
                out[i, at + j] = source[j]
            at += n


@kernel("void(R2, R2, i8[::1], i8[::1], i8[::1], T[:,::1])")
def embed_backward(d, x, passed, columns, starts, g):
    g[:] = 0
    n = g.shape[1]
    for i in range(x.shape[0]):
        at = passed.size
        for c in range(columns.size):
            target = g[np.uint64(starts[c] + np.int64(x[i, columns[c]]))]
            for j in range(n):
                target[j] += d[i, at + j]
            at += n
