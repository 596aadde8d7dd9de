"""Compute the kernels of sparse rows with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np

from mpidml_kernels.jit import kernel

CSR = "Array(i8,1,'C',True), Array(i4,1,'C',True), R1"


@kernel(f"i8({CSR}, Array(i8,1,'C',True), i4[::1], i8[::1], i8[::1], i4[::1], T[::1])")
def csr_take(starts, columns, values, rows, number, ids, out_starts, out_columns, out_values):
    k = at = 0
    out_starts[0] = 0
    for i in range(rows.size):
        row = np.uint64(rows[i])
        for j in range(np.uint64(starts[row]), np.uint64(starts[row + np.uint64(1)])):
            column = np.uint64(columns[j])
            if number[column] < 0:
                number[column] = k
                ids[k] = columns[j]
                k += 1
            out_columns[at] = number[column]
            out_values[at] = values[j]
            at += 1
        out_starts[i + 1] = at
    for i in range(k):
        number[np.uint64(ids[i])] = -1
    return k


@kernel(f"void({CSR}, R2, T[:,::1])")
def csr_matmul(starts, columns, values, table, out):
    for i in range(out.shape[0]):
        target = out[i]
        target[:] = 0
        for j in range(np.uint64(starts[i]), np.uint64(starts[i + 1])):
            source, value = table[np.uint64(columns[j])], values[j]
            for c in range(target.size):
                target[c] += value * source[c]


@kernel(f"void({CSR}, R2, T[:,::1])")
def csr_matmul_backward(starts, columns, values, d, g):
    for i in range(d.shape[0]):
        source = d[i]
        for j in range(np.uint64(starts[i]), np.uint64(starts[i + 1])):
            target, value = g[np.uint64(columns[j])], values[j]
            for c in range(source.size):
                target[c] += value * source[c]
