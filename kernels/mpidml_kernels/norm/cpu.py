"""Compute layer normalisation with Numba; its meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np

from mpidml_kernels.jit import REDUCTION, kernel


@kernel("void(R2, R1, R1, f8, T[:,::1], T[:,::1])", REDUCTION)
def layer_norm(x, gain, bias, eps, stats, out):
    real = out.dtype.type
    n = x.shape[1]
    for i in range(x.shape[0]):
        row, target = x[i], out[i]
        total = real(0)
        for j in range(n):
            total += row[j]
        mean = total / real(n)
        squares = real(0)
        for j in range(n):
            away = row[j] - mean
            squares += away * away
        inverse = real(1) / np.sqrt(squares / real(n) + real(eps))
        stats[i, 0], stats[i, 1] = mean, inverse
        for j in range(n):
            target[j] = (row[j] - mean) * inverse * gain[j] + bias[j]


@kernel("void(T[:,::1], R2, R2, R1, T[::1], T[::1])", REDUCTION)
def layer_norm_backward(d, x, stats, gain, dgain, dbias):
    real = d.dtype.type
    n = x.shape[1]
    dgain[:] = 0
    dbias[:] = 0
    for i in range(x.shape[0]):
        row, slope = x[i], d[i]
        mean, inverse = stats[i, 0], stats[i, 1]
        for j in range(n):
            dgain[j] += slope[j] * ((row[j] - mean) * inverse)
            dbias[j] += slope[j]
        total, along = real(0), real(0)
        for j in range(n):
            v = slope[j] * gain[j]
            total += v
            along += v * ((row[j] - mean) * inverse)
        total, along = total / real(n), along / real(n)
        for j in range(n):
            slope[j] = (slope[j] * gain[j] - total - (row[j] - mean) * inverse * along) * inverse
