"""Compute the steps whose size each element sets by itself with Numba; their meaning is in reference.py. Each is one pass over memory."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np

from mpidml_kernels.jit import kernel


@kernel("void(R1, T[::1], T[::1], R1, f8, f8, f8)")
def adagrad(w, out, s, g, rate, eps, count):
    real = s.dtype.type
    r, tiny, c = real(rate), real(eps), real(count)
    for i in range(s.size):
        slope = g[i]
        x = s[i] + c * (slope * slope)
        s[i] = x
        out[i] = w[i] - r * (slope / (np.sqrt(x) + tiny))


@kernel("void(T[::1], T[::1], R1, f8, f8, f8)")
def adagrad_in_place(w, s, g, rate, eps, count):
    real = s.dtype.type
    r, tiny, c = real(rate), real(eps), real(count)
    for i in range(s.size):
        slope = g[i]
        x = s[i] + c * (slope * slope)
        s[i] = x
        w[i] -= r * (slope / (np.sqrt(x) + tiny))


@kernel("void(T[::1], T[::1], f8, f8)")
def adagrad_transform(s, g, eps, count):
    real = s.dtype.type
    tiny, c = real(eps), real(count)
    for i in range(s.size):
        slope = g[i]
        x = s[i] + c * (slope * slope)
        s[i] = x
        g[i] = slope / (np.sqrt(x) + tiny)


@kernel("void(R1, T[::1], T[::1], R1, f8, f8, f8)")
def rmsprop(w, out, v, g, rate, alpha, eps):
    real = v.dtype.type
    r, a, c, tiny = real(rate), real(alpha), real(1 - alpha), real(eps)
    for i in range(v.size):
        slope = g[i]
        x = a * v[i] + c * (slope * slope)
        v[i] = x
        out[i] = w[i] - r * (slope / (np.sqrt(x) + tiny))


@kernel("void(T[::1], T[::1], R1, f8, f8, f8)")
def rmsprop_in_place(w, v, g, rate, alpha, eps):
    real = v.dtype.type
    r, a, c, tiny = real(rate), real(alpha), real(1 - alpha), real(eps)
    for i in range(v.size):
        slope = g[i]
        x = a * v[i] + c * (slope * slope)
        v[i] = x
        w[i] -= r * (slope / (np.sqrt(x) + tiny))


@kernel("void(T[::1], T[::1], f8, f8)")
def rmsprop_transform(v, g, alpha, eps):
    real = v.dtype.type
    a, c, tiny = real(alpha), real(1 - alpha), real(eps)
    for i in range(v.size):
        slope = g[i]
        x = a * v[i] + c * (slope * slope)
        v[i] = x
        g[i] = slope / (np.sqrt(x) + tiny)


@kernel("void(R1, T[::1], T[::1], T[::1], R1, f8, f8, f8)")
def adadelta(w, out, v, d, g, rate, rho, eps):
    real = v.dtype.type
    r, a, c, tiny = real(rate), real(rho), real(1 - rho), real(eps)
    for i in range(v.size):
        slope, past = g[i], d[i]
        x = a * v[i] + c * (slope * slope)
        u = (np.sqrt(past + tiny) / np.sqrt(x + tiny)) * slope
        v[i] = x
        d[i] = a * past + c * (u * u)
        out[i] = w[i] - r * u


@kernel("void(T[::1], T[::1], T[::1], R1, f8, f8, f8)")
def adadelta_in_place(w, v, d, g, rate, rho, eps):
    real = v.dtype.type
    r, a, c, tiny = real(rate), real(rho), real(1 - rho), real(eps)
    for i in range(v.size):
        slope, past = g[i], d[i]
        x = a * v[i] + c * (slope * slope)
        u = (np.sqrt(past + tiny) / np.sqrt(x + tiny)) * slope
        v[i] = x
        d[i] = a * past + c * (u * u)
        w[i] -= r * u


@kernel("void(T[::1], T[::1], T[::1], f8, f8)")
def adadelta_transform(v, d, g, rho, eps):
    real = v.dtype.type
    a, c, tiny = real(rho), real(1 - rho), real(eps)
    for i in range(v.size):
        slope, past = g[i], d[i]
        x = a * v[i] + c * (slope * slope)
        u = (np.sqrt(past + tiny) / np.sqrt(x + tiny)) * slope
        v[i] = x
        d[i] = a * past + c * (u * u)
        g[i] = u


@kernel("void(R1, T[::1], T[::1], T[::1], R1, f8, f8, f8, f8, f8, f8, f8)")
def adam(w, out, m, v, g, rate, beta1, beta2, eps, bias1, bias2, decay):
    real = m.dtype.type
    r, b1, b2, tiny, p = real(rate), real(beta1), real(beta2), real(eps), real(decay)
    c1, c2, k1, k2 = real(1 - beta1), real(1 - beta2), real(1 / bias1), real(1 / bias2)
    for i in range(m.size):
        slope, at = g[i], w[i]
        x = b1 * m[i] + c1 * slope
        y = b2 * v[i] + c2 * (slope * slope)
        m[i] = x
        v[i] = y
        out[i] = at - r * ((x * k1) / (np.sqrt(y * k2) + tiny) + p * at)


@kernel("void(T[::1], T[::1], T[::1], R1, f8, f8, f8, f8, f8, f8, f8)")
def adam_in_place(w, m, v, g, rate, beta1, beta2, eps, bias1, bias2, decay):
    real = m.dtype.type
    r, b1, b2, tiny, p = real(rate), real(beta1), real(beta2), real(eps), real(decay)
    c1, c2, k1, k2 = real(1 - beta1), real(1 - beta2), real(1 / bias1), real(1 / bias2)
    for i in range(m.size):
        slope, at = g[i], w[i]
        x = b1 * m[i] + c1 * slope
        y = b2 * v[i] + c2 * (slope * slope)
        m[i] = x
        v[i] = y
        w[i] = at - r * ((x * k1) / (np.sqrt(y * k2) + tiny) + p * at)


@kernel("void(R1, T[::1], T[::1], T[::1], f8, f8, f8, f8, f8, f8)")
def adam_transform(w, m, v, g, beta1, beta2, eps, bias1, bias2, decay):
    real = m.dtype.type
    b1, b2, tiny, p = real(beta1), real(beta2), real(eps), real(decay)
    c1, c2, k1, k2 = real(1 - beta1), real(1 - beta2), real(1 / bias1), real(1 / bias2)
    for i in range(m.size):
        slope = g[i]
        x = b1 * m[i] + c1 * slope
        y = b2 * v[i] + c2 * (slope * slope)
        m[i] = x
        v[i] = y
        g[i] = (x * k1) / (np.sqrt(y * k2) + tiny) + p * w[i]


@kernel("void(R1, T[::1], T[::1], R1, f8, f8, f8, f8)")
def lion(w, out, m, g, rate, beta1, beta2, decay):
    real = m.dtype.type
    r, b1, b2, c1, c2, p = real(rate), real(beta1), real(beta2), real(1 - beta1), real(1 - beta2), real(decay)
    for i in range(m.size):
        slope, past, at = g[i], m[i], w[i]
        m[i] = b2 * past + c2 * slope
        out[i] = at - r * (np.sign(b1 * past + c1 * slope) + p * at)


@kernel("void(T[::1], T[::1], R1, f8, f8, f8, f8)")
def lion_in_place(w, m, g, rate, beta1, beta2, decay):
    real = m.dtype.type
    r, b1, b2, c1, c2, p = real(rate), real(beta1), real(beta2), real(1 - beta1), real(1 - beta2), real(decay)
    for i in range(m.size):
        slope, past, at = g[i], m[i], w[i]
        m[i] = b2 * past + c2 * slope
        w[i] = at - r * (np.sign(b1 * past + c1 * slope) + p * at)


@kernel("void(R1, T[::1], T[::1], f8, f8, f8)")
def lion_transform(w, m, g, beta1, beta2, decay):
    real = m.dtype.type
    b1, b2, c1, c2, p = real(beta1), real(beta2), real(1 - beta1), real(1 - beta2), real(decay)
    for i in range(m.size):
        slope, past = g[i], m[i]
        m[i] = b2 * past + c2 * slope
        g[i] = np.sign(b1 * past + c1 * slope) + p * w[i]


@kernel("void(R1, T[::1], T[::1], T[::1], T[::1], R1, f8, f8, f8, f8, f8)")
def ftrl(w, out, z, n, q, g, rate, l1, l2, beta, count):
    real = z.dtype.type
    k, a, b, base, c, zero = real(1 / rate), real(l1), real(l2), real(beta), real(count), real(0)
    for i in range(z.size):
        slope = g[i]
        total = n[i] + c * (slope * slope)
        new = (base + np.sqrt(total)) * k
        x = z[i] + (slope - (new - q[i]) * w[i])
        n[i] = total
        q[i] = new
        z[i] = x
        out[i] = zero if np.abs(x) <= a else (a * np.sign(x) - x) / (new + b)


@kernel("void(T[::1], T[::1], T[::1], T[::1], R1, f8, f8, f8, f8, f8)")
def ftrl_in_place(w, z, n, q, g, rate, l1, l2, beta, count):
    real = z.dtype.type
    k, a, b, base, c, zero = real(1 / rate), real(l1), real(l2), real(beta), real(count), real(0)
    for i in range(z.size):
        slope = g[i]
        total = n[i] + c * (slope * slope)
        new = (base + np.sqrt(total)) * k
        x = z[i] + (slope - (new - q[i]) * w[i])
        n[i] = total
        q[i] = new
        z[i] = x
        w[i] = zero if np.abs(x) <= a else (a * np.sign(x) - x) / (new + b)


@kernel("void(R1, T[::1], T[::1], T[::1], T[::1], f8, f8, f8, f8, f8)")
def ftrl_delta(w, z, n, q, g, rate, l1, l2, beta, count):
    real = z.dtype.type
    k, a, b, base, c, zero = real(1 / rate), real(l1), real(l2), real(beta), real(count), real(0)
    for i in range(z.size):
        slope = g[i]
        total = n[i] + c * (slope * slope)
        new = (base + np.sqrt(total)) * k
        x = z[i] + (slope - (new - q[i]) * w[i])
        n[i] = total
        q[i] = new
        z[i] = x
        g[i] = (zero if np.abs(x) <= a else (a * np.sign(x) - x) / (new + b)) - w[i]
