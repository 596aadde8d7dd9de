"""Compute the kernels of fully connected layers with Numba; their meaning is in reference.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import functools

import numpy as np
from numba import njit

from mpidml_kernels import dots as by_dots
from mpidml_kernels import strips as by_strips
from mpidml_kernels.elementary import exp, tanh
from mpidml_kernels.few_rows import NBYTES, few
from mpidml_kernels.jit import kernel

u32 = np.uint32

if NBYTES:  # so that they are compiled with the kernels of this file
    dots = by_dots.dots
if NBYTES == by_strips.LEAST_NBYTES:
    strips = by_strips.strips


def matmul(a, b, out):
    of_few = few(a, b, out)
    if of_few and by_dots.fits(a, b):
        dots(a, b.T, out)
    elif of_few and by_strips.fits(a, b):
        strips(a, b, out)
    else:
        np.dot(a, b, out)


def matmul_add(a, b, out):
    if a.size and b.size:  # the rows of out are the columns of what BLAS sees
        left, turned_left = (b.T, 0) if b.flags.c_contiguous else (b, 1)
        right, turned_right = (a.T, 0) if a.flags.c_contiguous else (a, 1)
        _gemm(out.dtype)(1, left, right, 1, out.T, turned_left, turned_right, 1)


@functools.cache
def _gemm(dtype):
    from scipy.linalg.blas import get_blas_funcs  # takes a tenth of a second, which few jobs need to wait for

    return get_blas_funcs("gemm", dtype=dtype)


@njit(error_model="numpy")
def mix(x):
    x = u32(u32(x ^ u32(x >> u32(16))) * u32(0x7FEB352D))
    x = u32(u32(x ^ u32(x >> u32(15))) * u32(0x846CA68B))
    return u32(x ^ u32(x >> u32(16)))


@njit(error_model="numpy")
def counter_of_row(key, index):
    row = mix(u32(u32(index) + u32(key & np.uint64(0xFFFFFFFF))))
    return mix(u32(u32(row ^ u32(index >> 32)) + u32(key >> np.uint64(32))))


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
            z[i, j] = tanh(z[i, j] + b[j])


@kernel("void(T[:,::1], R1)")
def bias_sigmoid(z, b):
    half = z.dtype.type(0.5)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] = half * tanh(half * (z[i, j] + b[j])) + half


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


@kernel("void(T[:,::1], R1)")
def bias_leaky_relu(z, b):
    slope = z.dtype.type(0.01)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            v = z[i, j] + b[j]
            z[i, j] = v if v > 0 else slope * v


@kernel("void(T[:,::1], R1)")
def bias_softplus(z, b):
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            v = z[i, j] + b[j]
            z[i, j] = (v if v > 0 else z.dtype.type(0)) + np.log1p(exp(-abs(v)))


@njit(error_model="numpy", fastmath={"contract"})
def _bounded(v, real):
    v = real(10) if v > 10 else v
    return real(-10) if v < -10 else v


@njit(error_model="numpy", fastmath={"contract"})
def _gate(v, real):
    return real(1) / (real(1) + exp(v * (real(-1.5957691216057308) - real(0.07135481627260025) * v * v)))


@kernel("void(T[:,::1], R1, T[:,::1])")
def bias_gelu(z, b, a):
    real = z.dtype.type
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            v = z[i, j] + b[j]
            z[i, j] = v
            a[i, j] = v * _gate(_bounded(v, real), real)


@kernel("void(T[:,::1], R2, T[::1])")
def leaky_relu_backward(d, a, gb):
    gb[:] = 0
    slope = d.dtype.type(0.01)
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            v = slope * d[i, j] if a[i, j] <= 0 else d[i, j]
            d[i, j] = v
            gb[j] += v


@kernel("void(T[:,::1], R2, T[::1])")
def softplus_backward(d, a, gb):
    gb[:] = 0
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            v = d[i, j] * -np.expm1(-a[i, j])
            d[i, j] = v
            gb[j] += v


@kernel("void(T[:,::1], R2, T[::1])")
def gelu_backward(d, z, gb):
    gb[:] = 0
    real = d.dtype.type
    one, first, third = real(1), real(1.5957691216057308), real(3 * 0.07135481627260025)
    for i in range(d.shape[0]):
        for j in range(d.shape[1]):
            w = _bounded(z[i, j], real)
            gate = _gate(w, real)
            v = d[i, j] * (gate + w * gate * (one - gate) * (first + third * w * w))
            d[i, j] = v
            gb[j] += v


@kernel("void(R2, i8[::1], u8[::1], f8, T[:,::1])")
def dropout(x, ids, key, rate, out):
    limit = u32(rate * 4294967296.0)
    scale, zero = x.dtype.type(1 / (1 - rate)), x.dtype.type(0)
    for i in range(out.shape[0]):
        counter, source, target = counter_of_row(key[0], ids[i]), x[i], out[i]
        for j in range(target.size):
            target[j] = source[j]
        for j in range(target.size):  # with one pointer the hash vectorises, with two it does not: half the time, the copy included
            scaled = target[j] * scale
            target[j] = scaled if mix(counter) >= limit else zero
            counter = u32(counter + u32(0x9E3779B9))


@kernel("void(T[:,::1], i8[::1], u8[::1], f8)")
def dropout_in_place(x, ids, key, rate):
    limit = u32(rate * 4294967296.0)
    scale, zero = x.dtype.type(1 / (1 - rate)), x.dtype.type(0)
    for i in range(x.shape[0]):
        counter, values = counter_of_row(key[0], ids[i]), x[i]
        for j in range(values.size):
            scaled = values[j] * scale
            values[j] = scaled if mix(counter) >= limit else zero
            counter = u32(counter + u32(0x9E3779B9))
