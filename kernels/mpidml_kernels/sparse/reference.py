"""Say what the sparse kernels mean. x, r, out: (n,), values: (k,), one dtype; ids: uint32 (k,), n < 2^32; v = x + r.

Strata: n values are cut into k stretches of n // k values or one more, and one value is drawn from each, by (key, stretch).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidml_kernels.packed.reference import draw

Array = np.ndarray[Any, Any]


def kth_magnitude(x: Array, r: Array, k: int, counts: Array) -> float:
    """Return the k-th largest |v|, 1 <= k <= n, NaN counting as largest; x and r are left alone.

    counts: int64 (2048,), scratch; the first is left to say how many of the k are equal to the k-th.
    """
    magnitudes = np.abs(x + r)
    found = np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k]
    counts[0] = k - (magnitudes > found).sum()
    return float(found)


def select(x: Array, r: Array, threshold: float, n_equal: int, values: Array, ids: Array) -> int:
    """Move the values with |v| > threshold, and the first `n_equal` of those equal to it, from r into `values`, and their places into `ids`.

    At most as many as there is room for, in order; r keeps the others. What is left of `values` and `ids` becomes 0. Returns how many were moved, or
    -1 if v was not all finite (then nothing of the result means anything).
    """
    r += x
    t = r.dtype.type(threshold)
    equal = np.flatnonzero(np.abs(r) == t)[:n_equal]
    chosen = np.union1d(np.flatnonzero(np.abs(r) > t), equal)[: values.size]
    values[...], ids[...] = 0, 0
    values[: chosen.size], ids[: chosen.size] = r[chosen], chosen
    finite = np.isfinite(r).all()
    r[chosen] = 0
    return len(chosen) if finite else -1


def scatter_add(values: Array, ids: Array, out: Array) -> None:
    """Compute out[ids[i]] += values[i]."""
    np.add.at(out, ids, values)


def is_finite(x: Array) -> bool:
    """Tell whether no value is NaN or infinite."""
    return bool(np.isfinite(x).all())


def strata(n: int, k: int, key: np.uint64) -> tuple[Array, Array]:
    """Return the place drawn from each of k stretches of n values, and the lengths of the stretches."""
    edges = np.arange(k + 1, dtype=np.int64) * n // max(k, 1)
    lengths = np.diff(edges)
    return edges[:-1] + ((draw(key, np.arange(k)).astype(np.uint64) * lengths.astype(np.uint64)) >> np.uint64(32)).astype(np.int64), lengths


def strata_move(r: Array, key: np.uint64, values: Array) -> None:
    """Move the value drawn from each stretch out of r."""
    at, _ = strata(r.size, values.size, key)
    values[...] = r[at]
    r[at] = 0


def strata_take(x: Array, key: np.uint64, values: Array) -> None:
    """Take the value drawn from each stretch, times the stretch's length: so its mean over the keys is the stretch itself."""
    at, lengths = strata(x.size, values.size, key)
    values[...] = x[at] * lengths.astype(x.dtype)


def strata_add(values: Array, key: np.uint64, out: Array) -> None:
    """Add each value where the key says that it came from."""
    out[strata(out.size, values.size, key)[0]] += values
