"""Compute the kernels of fully connected layers with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from mpidml_kernels.jit import kernel

f32, u32 = np.float32, np.uint32

matmul = np.dot


def _tanh(x):
    raise NotImplementedError("compiled code only")


@overload(_tanh, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _tanh_for(x):
    """Choose tanh by type: for float32 a rational function that vectorises (np.tanh is a scalar call), for float64 np.tanh.

    x P(x^2) / Q(x^2) on |x| <= 7.905, where tanh rounds to 1; within 3e-7 of tanh. Coefficients: Eigen, generic_fast_tanh.
    """
    if x != types.float32:
        return lambda x: np.tanh(x)

    def rational(x):
        limit = f32(7.90531110763549805)
        x = limit if x > limit else x
        x = -limit if x < -limit else x
        q = f32(x * x)
        p = f32(-2.76076847742355e-16)
        p = f32(p * q + f32(2.00018790482477e-13))
        p = f32(p * q + f32(-8.60467152213735e-11))
        p = f32(p * q + f32(5.12229709037114e-08))
        p = f32(p * q + f32(1.48572235717979e-05))
        p = f32(p * q + f32(6.37261928875436e-04))
        p = f32(p * q + f32(4.89352455891786e-03))
        s = f32(1.19825839466702e-06)
        s = f32(s * q + f32(1.18534705686654e-04))
        s = f32(s * q + f32(2.26843463243900e-03))
        s = f32(s * q + f32(4.89352518554385e-03))
        return f32(f32(x * p) / s)

    return rational


@njit(error_model="numpy")
def _mix(x):
    x = u32(u32(x ^ u32(x >> u32(16))) * u32(0x7FEB352D))
    x = u32(u32(x ^ u32(x >> u32(15))) * u32(0x846CA68B))
    return u32(x ^ u32(x >> u32(16)))


@njit(error_model="numpy")
def _row(key, index):
    row = _mix(u32(u32(index) + u32(key & np.uint64(0xFFFFFFFF))))
    return _mix(u32(u32(row ^ u32(index >> 32)) + u32(key >> np.uint64(32))))


@kernel("void(T[:,::1], R1)")
def bias_linear(z, b):
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] += b[j]


@kernel("void(T[:,::1], R1)")
def bias_relu(z, b):
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            v = z[i, j] + b[j]
            z[i, j] = z.dtype.type(0) if v < 0 else v  # in this form NaN passes


@kernel("void(T[:,::1], R1)")
def bias_tanh(z, b):
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] = _tanh(z[i, j] + b[j])


@kernel("void(T[:,::1], R1)")
def bias_sigmoid(z, b):
    half = z.dtype.type(0.5)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] = half * _tanh(half * (z[i, j] + b[j])) + half


@kernel("void(T[:,::1], R2, T[::1])")
def linear_backward(d, a, gb):
    gb[:] = 0
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            gb[j] += d[i, j]


@kernel("void(T[:,::1], R2, T[::1])")
def relu_backward(d, a, gb):
    gb[:] = 0
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            v = d.dtype.type(0) if a[i, j] <= 0 else d[i, j]
            d[i, j] = v
            gb[j] += v


@kernel("void(T[:,::1], R2, T[::1])")
def tanh_backward(d, a, gb):
    gb[:] = 0
    one = d.dtype.type(1)
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            v = d[i, j] * (one - a[i, j] * a[i, j])
            d[i, j] = v
            gb[j] += v


@kernel("void(T[:,::1], R2, T[::1])")
def sigmoid_backward(d, a, gb):
    gb[:] = 0
    one = d.dtype.type(1)
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            v = d[i, j] * (a[i, j] * (one - a[i, j]))
            d[i, j] = v
            gb[j] += v


@kernel("void(R2, i8[::1], u8[::1], f8, T[:,::1])")
def dropout(x, ids, key, rate, out):
    limit = u32(rate * 4294967296.0)
    scale, zero = x.dtype.type(1 / (1 - rate)), x.dtype.type(0)
    for i in range(out.shape[0]):
        counter, source, target = _row(key[0], ids[i]), x[i], out[i]
        for j in range(target.size):
            target[j] = source[j]
        for j in range(target.size):  # with one pointer the hash vectorises, with two it does not: half the time, the copy included
            scaled = target[j] * scale
            target[j] = scaled if _mix(counter) >= limit else zero
            counter = u32(counter + u32(0x9E3779B9))


@kernel("void(T[:,::1], i8[::1], u8[::1], f8)")
def dropout_in_place(x, ids, key, rate):
    limit = u32(rate * 4294967296.0)
    scale, zero = x.dtype.type(1 / (1 - rate)), x.dtype.type(0)
    for i in range(x.shape[0]):
        counter, values = _row(key[0], ids[i]), x[i]
        for j in range(values.size):
            scaled = values[j] * scale
            values[j] = scaled if _mix(counter) >= limit else zero
            counter = u32(counter + u32(0x9E3779B9))
