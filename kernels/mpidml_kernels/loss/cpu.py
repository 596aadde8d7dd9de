"""Compute the losses with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import njit

from mpidml_kernels.elementary import exp
from mpidml_kernels.jit import REDUCTION, kernel


@njit(error_model="numpy")
def _largest(row):
    """Return the place of the largest value, of the first NaN if there is one: as np.argmax does."""
    best = 0
    for j in range(1, row.size):
        if row[j] > row[best] or (row[j] != row[j] and row[best] == row[best]):
            best = j
    return best


@kernel("f8(T[:,::1], i8[::1], f8)", REDUCTION)
def softmax_xent(z, y, scale):
    real = z.dtype.type
    loss = 0.0
    for i in range(z.shape[0]):
        row = z[i]
        label = np.uint64(y[i])
        largest = real(-np.inf)
        for j in range(row.size):
            largest = row[j] if row[j] > largest else largest
        at_label = np.float64(row[label] - largest)
        total = real(0)
        for j in range(row.size):
            e = exp(row[j] - largest)
            row[j] = e
            total += e
        loss += np.log(np.float64(total)) - at_label
        factor = real(scale) / total
        for j in range(row.size):
            row[j] *= factor
        row[label] -= real(scale)
    return loss


@kernel("f8(T[:,::1], R2, f8)", REDUCTION)
def squared_error(z, t, scale):
    s = z.dtype.type(scale)
    loss = 0.0
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            e = z[i, j] - t[i, j]
            loss += np.float64(e) * np.float64(e)
            z[i, j] = e * s
    return 0.5 * loss


@kernel("f8(T[:,::1], i8[::1], R1, f8, f8)", REDUCTION)
def weighted_xent(z, y, weights, smoothing, scale):
    real = z.dtype.type
    spread = smoothing / max(z.shape[1], 1)
    loss, everywhere = 0.0, 0.0
    for j in range(weights.size):
        everywhere += spread * np.float64(weights[j])
    for i in range(z.shape[0]):
        row = z[i]
        label = np.uint64(y[i])
        largest = real(-np.inf)
        for j in range(row.size):
            largest = row[j] if row[j] > largest else largest
        at_label, below = np.float64(row[label] - largest), real(0)
        total = real(0)
        for j in range(row.size):
            below += weights[j] * (row[j] - largest)
            e = exp(row[j] - largest)
            row[j] = e
            total += e
        own = (1.0 - smoothing) * np.float64(weights[label])
        mass = own + everywhere
        loss += mass * np.log(np.float64(total)) - own * at_label
        if smoothing > 0.0:
            loss -= spread * np.float64(below)
        factor, share = real(scale * mass) / total, real(scale * spread)
        for j in range(row.size):
            row[j] = row[j] * factor - share * weights[j]
        row[label] -= real(scale * own)
    return loss


@kernel("f8(T[:,::1], R2, f8, f8)", REDUCTION)
def huber(z, t, delta, scale):
    s, high = z.dtype.type(scale), z.dtype.type(delta)
    loss = 0.0
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            e = z[i, j] - t[i, j]
            c = e if not e > high else high
            c = c if not c < -high else -high
            loss += np.float64(c) * (np.float64(e) - 0.5 * np.float64(c))
            z[i, j] = c * s
    return loss


@kernel("f8(T[:,::1], i8[::1], R1, f8, f8)", REDUCTION)
def hinge(z, y, weights, margin, scale):
    real = z.dtype.type
    loss = 0.0
    for i in range(z.shape[0]):
        row = z[i]
        label = np.uint64(y[i])
        wanted = real(margin) - row[label]
        share = np.float64(weights[label]) / row.size
        step = real(scale * share)
        over, n_over = real(0), real(0)
        for j in range(row.size):
            e = wanted + row[j] if np.uint64(j) != label else real(0)
            over += real(0) if e <= 0 else e
            n_over += real(0) if e <= 0 else real(1)
            row[j] = real(0) if e <= 0 else step
        loss += share * np.float64(over)
        row[label] = -step * n_over
    return loss


@kernel("f8(T[:,::1], R2, f8)", REDUCTION)
def binary_xent(z, t, scale):
    one, zero, s = z.dtype.type(1), z.dtype.type(0), z.dtype.type(scale)
    loss = 0.0
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            v, target = z[i, j], t[i, j]
            e = exp(-abs(v))
            loss += np.float64((zero if v < 0 else v) - v * target) + np.log1p(np.float64(e))
            z[i, j] = ((e if v < 0 else one) / (one + e) - target) * s
    return loss


@kernel("i8(R2, i8[::1])")
def count_largest(z, y):
    n = 0
    for i in range(z.shape[0]):
        n += _largest(z[i]) == y[i]
    return n


@kernel("i8(R2, R2)")
def count_signs(z, t):
    half = z.dtype.type(0.5)
    n = 0
    for i in range(z.shape[0]):
        right = True
        for j in range(z.shape[1]):
            right &= (z[i, j] > 0) == (t[i, j] > half) and z[i, j] == z[i, j]
        n += right
    return n
