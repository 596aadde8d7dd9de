"""Compute the losses with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from mpidml_kernels.jit import REDUCTION, kernel

f32, i32 = np.float32, np.int32


def _exp(x):
    raise NotImplementedError("compiled code only")


@overload(_exp, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _exp_for(x):
    """Choose exp by type: for float32 a polynomial that vectorises (np.exp is a scalar call), for float64 np.exp.

    exp(x) = 2^n exp(r), n = round(x / ln 2), r by ln 2 in two parts, which no reassociation may join; then degree 6; relative error 1e-7 on
    [-87, 88], outside of which x is clamped. Coefficients: Cephes, expf.
    """
    if x != types.float32:
        return lambda x: np.exp(x)

    def polynomial(x):
        x = f32(-87) if x < f32(-87) else x
        x = f32(88) if x > f32(88) else x
        n = f32(np.rint(f32(x * f32(1.44269504))))
        r = f32(f32(x - n * f32(0.693359375)) + n * f32(2.12194440e-4))
        p = f32(1.9875691500e-4)
        p = f32(p * r + f32(1.3981999507e-3))
        p = f32(p * r + f32(8.3334519073e-3))
        p = f32(p * r + f32(4.1665795894e-2))
        p = f32(p * r + f32(1.6666665459e-1))
        p = f32(p * r + f32(5.0000001201e-1))
        p = f32(f32(p * r) * r + r + f32(1))
        return f32(p * i32(i32(i32(n) + i32(127)) << i32(23)).view(f32))

    return polynomial


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
            e = _exp(row[j] - largest)
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


@kernel("Tuple((f8, i8))(R2, i8[::1])", REDUCTION)
def score_xent(z, y):
    real = z.dtype.type
    loss, n_correct = 0.0, 0
    for i in range(z.shape[0]):
        row = z[i]
        best = _largest(row)
        total = real(0)
        for j in range(row.size):
            total += _exp(row[j] - row[best])
        loss += np.log(np.float64(total)) - np.float64(row[np.uint64(y[i])] - row[best])
        n_correct += best == y[i]
    return loss, n_correct


@kernel("Tuple((f8, i8))(R2, R2, i8[::1])", REDUCTION)
def score_squared(z, t, y):
    loss, n_correct = 0.0, 0
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            e = np.float64(z[i, j] - t[i, j])
            loss += e * e
        n_correct += _largest(z[i]) == y[i]
    return 0.5 * loss, n_correct
