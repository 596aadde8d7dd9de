"""Compute the vector kernels with Numba; their meaning is in reference.py. Each is one pass over memory, which is what they cost."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np

from mpidml_kernels.jit import REDUCTION, kernel


@kernel("void(T[::1], R1)")
def add(a, b):
    for i in range(a.size):
        a[i] += b[i]


@kernel("void(T[::1], R1, R1)")
def add3(a, b, c):
    for i in range(a.size):
        a[i] += b[i] + c[i]


@kernel("void(T[::1], f8)")
def scale(a, s):
    factor = a.dtype.type(s)
    for i in range(a.size):
        a[i] *= factor


@kernel("f8(R1)", REDUCTION)
def sum_of_squares(g):
    total = 0.0
    for i in range(g.size):
        total += np.float64(g[i]) * np.float64(g[i])
    return total


@kernel("void(T[::1], R1, f8)")
def decay_transform(g, w, rate):
    r = g.dtype.type(rate)
    for i in range(g.size):
        g[i] += r * w[i]


@kernel("void(T[::1], R1, f8)")
def l1_transform(g, w, rate):
    r = g.dtype.type(rate)
    for i in range(g.size):
        g[i] += r * np.sign(w[i])


@kernel("void(T[::1], f8)")
def clip_transform(g, limit):
    high = g.dtype.type(limit)
    for i in range(g.size):
        x = g[i]
        x = high if x > high else x
        g[i] = -high if x < -high else x  # in this form NaN passes


@kernel("void(R1, T[::1], R1, f8)")
def descend(w, out, g, rate):
    r = out.dtype.type(rate)
    for i in range(out.size):
        out[i] = w[i] - r * g[i]


@kernel("void(T[::1], R1, f8)")
def descend_in_place(w, g, rate):
    r = w.dtype.type(rate)
    for i in range(w.size):
        w[i] -= r * g[i]


@kernel("void(R1, T[::1], T[::1], R1, f8, f8)")
def momentum(w, out, v, g, rate, mu):
    r, decay = v.dtype.type(rate), v.dtype.type(mu)
    for i in range(v.size):
        x = decay * v[i] + g[i]
        v[i] = x
        out[i] = w[i] - r * x


@kernel("void(T[::1], T[::1], R1, f8, f8)")
def momentum_in_place(w, v, g, rate, mu):
    r, decay = v.dtype.type(rate), v.dtype.type(mu)
    for i in range(v.size):
        x = decay * v[i] + g[i]
        v[i] = x
        w[i] -= r * x


@kernel("void(T[::1], T[::1], f8)")
def momentum_transform(v, g, mu):
    decay = v.dtype.type(mu)
    for i in range(v.size):
        x = decay * v[i] + g[i]
        v[i] = x
        g[i] = x


@kernel("void(R1, T[::1], T[::1], R1, f8, f8)")
def nesterov(w, out, v, g, rate, mu):
    r, decay = v.dtype.type(rate), v.dtype.type(mu)
    for i in range(v.size):
        slope = g[i]
        x = decay * v[i] + slope
        v[i] = x
        out[i] = w[i] - r * (slope + decay * x)


@kernel("void(T[::1], T[::1], R1, f8, f8)")
def nesterov_in_place(w, v, g, rate, mu):
    r, decay = v.dtype.type(rate), v.dtype.type(mu)
    for i in range(v.size):
        slope = g[i]
        x = decay * v[i] + slope
        v[i] = x
        w[i] -= r * (slope + decay * x)


@kernel("void(T[::1], T[::1], f8)")
def nesterov_transform(v, g, mu):
    decay = v.dtype.type(mu)
    for i in range(v.size):
        x = decay * v[i] + g[i]
        v[i] = x
        g[i] += decay * x
