"""Say what the kernels of layer normalisation mean. x, out, d: (m, n); gain, bias: (n,); stats: (m, 2), each row's mean and 1 / deviation."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def layer_norm(x: Array, gain: Array, bias: Array, eps: float, stats: Array, out: Array) -> None:
    """Compute out = gain (x - mean) / sqrt(variance + eps) + bias, mean and variance over the row's n values; keep them in `stats`."""
    mean = x.mean(axis=1, keepdims=True)
    away = x - mean
    stats[:, :1] = mean
    stats[:, 1:] = 1 / np.sqrt((away * away).mean(axis=1, keepdims=True) + x.dtype.type(eps))
    out[...] = away * stats[:, 1:] * gain + bias


def layer_norm_backward(d: Array, x: Array, stats: Array, gain: Array, dgain: Array, dbias: Array) -> None:
    """Turn d, the gradient of `layer_norm`'s output, into that of x in place; dgain and dbias are those of gain and bias."""
    normal = (x - stats[:, :1]) * stats[:, 1:]
    np.sum(d * normal, axis=0, out=dgain)
    np.sum(d, axis=0, out=dbias)
    d *= gain
    along = (d * normal).mean(axis=1, keepdims=True)
    d -= d.mean(axis=1, keepdims=True) + normal * along
    d *= stats[:, 1:]
