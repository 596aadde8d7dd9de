"""Say what the vector kernels mean. All arrays: (n,), contiguous, one dtype; scalars are rounded to that dtype first.

An optimizer step comes three times: into `out` (which is not `w`), in place, and as a transform of the gradient g into the direction u
for which the step would be w - rate u. In place has its own kernel, since equal pointers defeat the compiled kernel's alias checks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def add(a: Array, b: Array) -> None:
    """Compute a += b."""
    a += b


def add3(a: Array, b: Array, c: Array) -> None:
    """Compute a += b + c."""
    a += b + c


def scale(a: Array, s: float) -> None:
    """Compute a *= s."""
    a *= a.dtype.type(s)


def sum_of_squares(g: Array) -> float:
    """Return the sum of g^2, accumulated in float64."""
    return float(np.sum(np.square(g, dtype=np.float64)))


def decay_transform(g: Array, w: Array, rate: float) -> None:
    """Compute g += rate w."""
    g += g.dtype.type(rate) * w


def l1_transform(g: Array, w: Array, rate: float) -> None:
    """Compute g += rate sign(w)."""
    g += g.dtype.type(rate) * np.sign(w)


def clip_transform(g: Array, limit: float) -> None:
    """Compute g = min(max(g, -limit), limit); NaN stays NaN."""
    np.clip(g, -g.dtype.type(limit), g.dtype.type(limit), out=g)


def descend(w: Array, out: Array, g: Array, rate: float) -> None:
    """Compute out = w - rate g."""
    out[...] = w - w.dtype.type(rate) * g


def descend_in_place(w: Array, g: Array, rate: float) -> None:
    """Compute w -= rate g."""
    descend(w, w, g, rate)


def momentum_transform(v: Array, g: Array, mu: float) -> None:
    """Compute v = mu v + g, then g = v (Polyak 1964)."""
    v[...] = v.dtype.type(mu) * v + g
    g[...] = v


def momentum(w: Array, out: Array, v: Array, g: Array, rate: float, mu: float) -> None:
    """Compute v = mu v + g, then out = w - rate v; g is left alone."""
    v[...] = v.dtype.type(mu) * v + g
    descend(w, out, v, rate)


def momentum_in_place(w: Array, v: Array, g: Array, rate: float, mu: float) -> None:
    """Compute `momentum` into w."""
    momentum(w, w, v, g, rate, mu)


def nesterov_transform(v: Array, g: Array, mu: float) -> None:
    """Compute v = mu v + g, then g += mu v (Sutskever et al., ICML 2013, section 2, in the form that keeps the look-ahead point as w)."""
    v[...] = v.dtype.type(mu) * v + g
    g += v.dtype.type(mu) * v


def nesterov(w: Array, out: Array, v: Array, g: Array, rate: float, mu: float) -> None:
    """Compute v = mu v + g, then out = w - rate (g + mu v); g is left alone."""
    v[...] = v.dtype.type(mu) * v + g
    descend(w, out, g + v.dtype.type(mu) * v, rate)


def nesterov_in_place(w: Array, v: Array, g: Array, rate: float, mu: float) -> None:
    """Compute `nesterov` into w."""
    nesterov(w, w, v, g, rate, mu)
