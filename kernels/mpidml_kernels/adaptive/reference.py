"""Say what the steps mean whose size each element sets by itself. All arrays: (n,), contiguous, one dtype; scalars are rounded to it first.

As in the family `update`, a step comes three times: into `out` (which is not `w`), in place, and as a transform of the gradient g into the
direction u for which the step would be w - rate u; that of FTRL, which is no multiple of a rate, as the change of w.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _descend(w: Array, out: Array, u: Array, rate: float) -> None:
    out[...] = w - w.dtype.type(rate) * u


def adagrad_transform(s: Array, g: Array, eps: float, count: float) -> None:
    """Compute s += count g^2, then g = g / (sqrt(s) + eps) (Duchi, Hazan, Singer, JMLR 2011, section 1.1, diagonal)."""
    real = g.dtype.type
    s += real(count) * (g * g)
    g[...] = g / (np.sqrt(s) + real(eps))


def adagrad(w: Array, out: Array, s: Array, g: Array, rate: float, eps: float, count: float) -> None:
    """Compute out = w - rate u with u of `adagrad_transform`; g is left alone."""
    u = g.copy()
    adagrad_transform(s, u, eps, count)
    _descend(w, out, u, rate)


def adagrad_in_place(w: Array, s: Array, g: Array, rate: float, eps: float, count: float) -> None:
    """Compute `adagrad` into w."""
    adagrad(w, w, s, g, rate, eps, count)


def rmsprop_transform(v: Array, g: Array, alpha: float, eps: float) -> None:
    """Compute v = alpha v + (1 - alpha) g^2, then g = g / (sqrt(v) + eps) (Tieleman and Hinton 2012, lecture 6.5; eps as PyTorch places it)."""
    real = g.dtype.type
    v[...] = real(alpha) * v + real(1 - alpha) * (g * g)
    g[...] = g / (np.sqrt(v) + real(eps))


def rmsprop(w: Array, out: Array, v: Array, g: Array, rate: float, alpha: float, eps: float) -> None:
    """Compute out = w - rate u with u of `rmsprop_transform`; g is left alone."""
    u = g.copy()
    rmsprop_transform(v, u, alpha, eps)
    _descend(w, out, u, rate)


def rmsprop_in_place(w: Array, v: Array, g: Array, rate: float, alpha: float, eps: float) -> None:
    """Compute `rmsprop` into w."""
    rmsprop(w, w, v, g, rate, alpha, eps)


def adadelta_transform(v: Array, d: Array, g: Array, rho: float, eps: float) -> None:
    """Compute v = rho v + (1 - rho) g^2, g = g sqrt(d + eps) / sqrt(v + eps), then d = rho d + (1 - rho) g^2 (Zeiler 2012, algorithm 1)."""
    real = g.dtype.type
    v[...] = real(rho) * v + real(1 - rho) * (g * g)
    g[...] = (np.sqrt(d + real(eps)) / np.sqrt(v + real(eps))) * g
    d[...] = real(rho) * d + real(1 - rho) * (g * g)


def adadelta(w: Array, out: Array, v: Array, d: Array, g: Array, rate: float, rho: float, eps: float) -> None:
    """Compute out = w - rate u with u of `adadelta_transform`; g is left alone."""
    u = g.copy()
    adadelta_transform(v, d, u, rho, eps)
    _descend(w, out, u, rate)


def adadelta_in_place(w: Array, v: Array, d: Array, g: Array, rate: float, rho: float, eps: float) -> None:
    """Compute `adadelta` into w."""
    adadelta(w, w, v, d, g, rate, rho, eps)


def adam_transform(
    w: Array, m: Array, v: Array, g: Array, beta1: float, beta2: float, eps: float, bias1: float, bias2: float, decay: float
) -> None:
    """Compute m and v, then g = (m / bias1) / (sqrt(v / bias2) + eps) + decay w, bias1 = 1 - beta1^t, bias2 = 1 - beta2^t.

    m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2 (Kingma and Ba, ICLR 2015, algorithm 1). `decay` is the decoupled one of
    AdamW (Loshchilov and Hutter, ICLR 2019, algorithm 2, as PyTorch multiplies it by the learning rate); 0 is Adam.
    """
    real = g.dtype.type
    m[...] = real(beta1) * m + real(1 - beta1) * g
    v[...] = real(beta2) * v + real(1 - beta2) * (g * g)
    g[...] = (m * real(1 / bias1)) / (np.sqrt(v * real(1 / bias2)) + real(eps)) + real(decay) * w


def adam(
    w: Array, out: Array, m: Array, v: Array, g: Array, rate: float, beta1: float, beta2: float, eps: float, bias1: float, bias2: float, decay: float
) -> None:
    """Compute out = w - rate u with u of `adam_transform`; g is left alone."""
    u = g.copy()
    adam_transform(w, m, v, u, beta1, beta2, eps, bias1, bias2, decay)
    _descend(w, out, u, rate)


def adam_in_place(
    w: Array, m: Array, v: Array, g: Array, rate: float, beta1: float, beta2: float, eps: float, bias1: float, bias2: float, decay: float
) -> None:
    """Compute `adam` into w."""
    adam(w, w, m, v, g, rate, beta1, beta2, eps, bias1, bias2, decay)


def lion_transform(w: Array, m: Array, g: Array, beta1: float, beta2: float, decay: float) -> None:
    """Compute u = sign(beta1 m + (1 - beta1) g) + decay w, m = beta2 m + (1 - beta2) g, then g = u (Chen et al., NeurIPS 2023, algorithm 2)."""
    real = g.dtype.type
    u = np.sign(real(beta1) * m + real(1 - beta1) * g) + real(decay) * w
    m[...] = real(beta2) * m + real(1 - beta2) * g
    g[...] = u


def lion(w: Array, out: Array, m: Array, g: Array, rate: float, beta1: float, beta2: float, decay: float) -> None:
    """Compute out = w - rate u with u of `lion_transform`; g is left alone."""
    u = g.copy()
    lion_transform(w, m, u, beta1, beta2, decay)
    _descend(w, out, u, rate)


def lion_in_place(w: Array, m: Array, g: Array, rate: float, beta1: float, beta2: float, decay: float) -> None:
    """Compute `lion` into w."""
    lion(w, w, m, g, rate, beta1, beta2, decay)


def ftrl(w: Array, out: Array, z: Array, n: Array, q: Array, g: Array, rate: float, l1: float, l2: float, beta: float, count: float) -> None:
    """Compute n += count g^2, z += g - (q' - q) w with q' = (beta + sqrt(n)) / rate, then out = -(z - l1 sign(z)) / (q' + l2), 0 where |z| <= l1.

    FTRL-proximal (McMahan et al., KDD 2013, section 3). Its sigma is q' - q, one over the rate now less one over the rate before, so a rate
    that changes needs no other formula; q is 0 before the first step, hence weights that do not start at 0 are where the regulariser begins.
    """
    real = g.dtype.type
    n += real(count) * (g * g)
    new = (real(beta) + np.sqrt(n)) * real(1 / rate)
    z += g - (new - q) * w
    q[...] = new
    out[...] = np.where(np.abs(z) <= real(l1), real(0), (real(l1) * np.sign(z) - z) / (new + real(l2)))


def ftrl_in_place(w: Array, z: Array, n: Array, q: Array, g: Array, rate: float, l1: float, l2: float, beta: float, count: float) -> None:
    """Compute `ftrl` into w."""
    ftrl(w, w, z, n, q, g, rate, l1, l2, beta, count)


def ftrl_delta(w: Array, z: Array, n: Array, q: Array, g: Array, rate: float, l1: float, l2: float, beta: float, count: float) -> None:
    """Compute g = out - w with out of `ftrl`; adding it to w gives a 0 where out is 0."""
    out = np.empty_like(g)
    ftrl(w, out, z, n, q, g, rate, l1, l2, beta, count)
    g[...] = out - w
