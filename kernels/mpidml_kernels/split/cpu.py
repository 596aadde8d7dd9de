"""Compute the kernels of layers that are cut over ranks with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np

from mpidml_kernels.dense.cpu import counter_of_row, mix
from mpidml_kernels.elementary import exp
from mpidml_kernels.jit import EXACT, REDUCTION, kernel

u32 = np.uint32


@kernel("void(T[:,::1], i8[::1], u8[::1], f8, i8)")
def dropout_part(x, ids, key, rate, first):
    limit = u32(rate * 4294967296.0)
    scale, zero = x.dtype.type(1 / (1 - rate)), x.dtype.type(0)
    before = u32(u32(first) * u32(0x9E3779B9))
    for i in range(x.shape[0]):
        counter, values = u32(counter_of_row(key[0], ids[i]) + before), x[i]
        for j in range(values.size):
            scaled = values[j] * scale
            values[j] = scaled if mix(counter) >= limit else zero
            counter = u32(counter + u32(0x9E3779B9))


@kernel("void(R2, i8[::1], i8[::1], i8[::1], i8, R2, T[:,::1])")
def embed_part(x, passed, columns, starts, first, table, out):
    n = table.shape[1]
    for i in range(x.shape[0]):
        for j in range(passed.size):
            out[i, j] = x[i, passed[j]]
        at = passed.size
        for c in range(columns.size):
            row = starts[c] + np.int64(x[i, columns[c]]) - first
            if 0 <= row < table.shape[0]:
                source = table[np.uint64(row)]
                for j in range(n):
                    out[i, at + j] = source[j]
            else:
                for j in range(n):
                    out[i, at + j] = out.dtype.type(0)
            at += n


@kernel("void(R2, R2, i8[::1], i8[::1], i8[::1], i8, T[:,::1])")
def embed_part_backward(d, x, passed, columns, starts, first, g):
    g[:] = 0
    n = g.shape[1]
    for i in range(x.shape[0]):
        at = passed.size
        for c in range(columns.size):
            row = starts[c] + np.int64(x[i, columns[c]]) - first
            if 0 <= row < g.shape[0]:
                target = g[np.uint64(row)]
                for j in range(n):
                    target[j] += d[i, at + j]
            at += n


@kernel("void(R2, T[::1])")
def largest_of_rows(z, largest):
    for i in range(z.shape[0]):
        row, most = z[i], largest.dtype.type(-np.inf)
        for j in range(row.size):
            most = row[j] if row[j] > most else most
        largest[i] = most


@kernel("void(T[:,::1], i8[::1], i8, R1, R1, f8[:,::1])", REDUCTION)
def xent_part_sums(z, y, first, largest, weights, sums):
    real = z.dtype.type
    for i in range(z.shape[0]):
        row, most = z[i], largest[i]
        label = y[i] - first
        sums[1, i] = np.float64(row[np.uint64(label)] - most) if 0 <= label < row.size else 0.0
        if sums.shape[0] > 2:
            below = real(0)
            for j in range(row.size):
                below += weights[first + j] * (row[j] - most)
            sums[2, i] = np.float64(below)
        total = real(0)
        for j in range(row.size):
            e = exp(row[j] - most)
            row[j] = e
            total += e
        sums[0, i] = np.float64(total)


@kernel("f8(T[:,::1], i8[::1], i8, f8[:,::1], R1, f8, f8)", EXACT)  # ranks with more and with fewer columns know the same loss, to the bit
def xent_part(z, y, first, sums, weights, smoothing, scale):
    real = z.dtype.type
    spread = smoothing / max(weights.size, 1)
    loss, everywhere = 0.0, 0.0
    for j in range(weights.size):
        everywhere += spread * np.float64(weights[j])
    for i in range(z.shape[0]):
        row = z[i]
        label = y[i] - first
        own = (1.0 - smoothing) * np.float64(weights[np.uint64(y[i])])
        mass = own + everywhere
        loss += mass * np.log(sums[0, i]) - own * sums[1, i]
        if sums.shape[0] > 2:
            loss -= spread * sums[2, i]
        factor, share = real(scale * mass / sums[0, i]), real(scale * spread)
        for j in range(row.size):
            row[j] = row[j] * factor - share * weights[first + j]
        if 0 <= label < row.size:
            row[np.uint64(label)] -= real(scale * own)
    return loss
