"""Say what the kernels of fully connected layers mean. z, d, a: (m, n) contiguous; b, gb: (n,)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

matmul = np.dot
"""Compute out = a @ b, `matmul(a, b, out)`; a and b may be transposed views, out is contiguous and shares no memory with them."""


def matmul_add(a: Array, b: Array, out: Array) -> None:
    """Compute out += a @ b; a and b may be transposed views, out is contiguous."""
    out += a @ b


def bias_linear(z: Array, b: Array) -> None:
    """Compute z += b."""
    z += b


def bias_relu(z: Array, b: Array) -> None:
    """Compute z = max(z + b, 0); NaN stays NaN."""
    np.maximum(z + b, 0, out=z)


def bias_tanh(z: Array, b: Array) -> None:
    """Compute z = tanh(z + b)."""
    np.tanh(z + b, out=z)


def bias_sigmoid(z: Array, b: Array) -> None:
    """Compute z = 1 / (1 + exp(-(z + b))), by tanh, which cannot overflow."""
    z[...] = 0.5 * np.tanh(0.5 * (z + b)) + 0.5


def linear_backward(d: Array, a: Array, gb: Array) -> None:
    """Compute gb = column sums of d; a is not read."""
    np.sum(d, axis=0, out=gb)


def relu_backward(d: Array, a: Array, gb: Array) -> None:
    """Compute d = 0 where a <= 0, then gb = column sums of d; a is the activated output."""
    d[a <= 0] = 0
    np.sum(d, axis=0, out=gb)


def tanh_backward(d: Array, a: Array, gb: Array) -> None:
    """Compute d *= 1 - a^2, then gb = column sums of d."""
    d *= 1 - a * a
    np.sum(d, axis=0, out=gb)


def sigmoid_backward(d: Array, a: Array, gb: Array) -> None:
    """Compute d *= a (1 - a), then gb = column sums of d."""
    d *= a * (1 - a)
    np.sum(d, axis=0, out=gb)


def bias_leaky_relu(z: Array, b: Array) -> None:
    """Compute z = v where v = z + b > 0, else 0.01 v (Maas, Hannun, Ng, 2013)."""
    v = z + b
    z[...] = np.where(v > 0, v, z.dtype.type(0.01) * v)


def bias_softplus(z: Array, b: Array) -> None:
    """Compute z = log(1 + exp(z + b)), in the form that cannot overflow."""
    v = z + b
    z[...] = np.maximum(v, 0) + np.log1p(np.exp(-np.abs(v)))


def bias_gelu(z: Array, b: Array, a: Array) -> None:
    """Compute z += b and a = z / (1 + exp(-2 u)), u = sqrt(2 / pi) (z + 0.044715 z^3): the tanh form (Hendrycks, Gimpel, 2016).

    It is within 5e-4 of z Phi(z). z is kept, since its slope cannot be told from a.
    """
    z += b
    a[...] = z * _gate(_bounded(z))


def leaky_relu_backward(d: Array, a: Array, gb: Array) -> None:
    """Compute d *= 0.01 where a <= 0, then gb = column sums of d; a is the activated output."""
    d[a <= 0] *= d.dtype.type(0.01)
    np.sum(d, axis=0, out=gb)


def softplus_backward(d: Array, a: Array, gb: Array) -> None:
    """Compute d *= 1 - exp(-a), then gb = column sums of d."""
    d *= -np.expm1(-a)
    np.sum(d, axis=0, out=gb)


def gelu_backward(d: Array, z: Array, gb: Array) -> None:
    """Compute d *= the slope at z, the sum before the activation, then gb = column sums of d."""
    w = _bounded(z)
    gate = _gate(w)
    d *= gate + w * gate * (1 - gate) * (1.5957691216057308 + 3 * 0.07135481627260025 * w * w)
    np.sum(d, axis=0, out=gb)


def _bounded(z: Array) -> Array:
    """Return z in [-10, 10], outside of which the slope of gelu is 0 or 1 to the last bit, so that no power of z overflows."""
    bounded: Array = np.clip(z, -10, 10)
    return bounded


def _gate(z: Array) -> Array:
    gate: Array = 1 / (1 + np.exp(z * (-1.5957691216057308 - 0.07135481627260025 * z * z)))  # 2 sqrt(2 / pi), and 0.044715 times that
    return gate


def dropout(x: Array, ids: Array, key: Array, rate: float, out: Array) -> None:
    """Compute out = x / (1 - rate) where kept, else 0.

    ids: int64 (m,), the rows' global sample indices; key: uint64 (1,); 0 <= rate < 1. Whether (i, j) is kept depends on key, ids[i] and j
    only: the same sample has the same mask on any rank, in any batch. Source of the method: Srivastava et al., JMLR 15 (2014).
    """
    out[...] = np.where(kept(ids, key, rate, x.shape[1]), x * x.dtype.type(1 / (1 - rate)), x.dtype.type(0))


def dropout_in_place(x: Array, ids: Array, key: Array, rate: float) -> None:
    """Compute `dropout` of x into x; applied to a gradient it is dropout's own backward pass."""
    dropout(x, ids, key, rate, x)


def kept(ids: Array, key: Array, rate: float, n: int, first: int = 0) -> Array:
    """Return which of columns first to first + n are kept, bool (m, n)."""
    low, high = np.uint32(key[0] & np.uint64(0xFFFFFFFF)), np.uint32(key[0] >> np.uint64(32))
    row = _mix(ids.astype(np.uint32) + low)
    row = _mix((row ^ (ids >> 32).astype(np.uint32)) + high)
    column = np.arange(first, first + n, dtype=np.uint32) * np.uint32(0x9E3779B9)
    found: Array = _mix(row[:, None] + column[None, :]) >= np.uint32(rate * 2.0**32)
    return found


def _mix(x: Array) -> Array:
    """Scramble 32 bits, one to one ("lowbias32", C. Wellons, Prospecting for Hash Functions, 2018)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    mixed: Array = x ^ (x >> np.uint32(16))
    return mixed
