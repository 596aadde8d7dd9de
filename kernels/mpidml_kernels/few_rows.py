"""Tell where products of few rows are made by kernels of ours, in which no matrix is copied: BLAS copies the whole of the right one before it multiplies.

    a @ b.T    dots.py      b as it lies, row by row
    a @ b      strips.py    b as it lies, in strips of its columns; where vectors have 64 bytes

Of 64 rows that copy is a third of BLAS's time, of 512 it is little. Where the environment gives BLAS several threads, or does not say how many, it multiplies.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import os
from typing import Any

import numpy as np
from llvmlite import binding

MOST_ROWS, LEAST = 192, 1 << 18
"""Up to how many rows BLAS was measured to be slower, and from how many multiplications on a product is worth a look."""
REALS = (np.dtype(np.float32), np.dtype(np.float64))


def vector_nbytes() -> int:
    """Return how many bytes of a row are taken at once; 0 on a CPU for which nothing was measured, or if Numba compiles for another, and BLAS multiplies."""
    has = binding.get_host_cpu_features()
    if any(os.environ.get(f"NUMBA_CPU_{what}") for what in ("NAME", "FEATURES")) or not (has.get("avx2") and has.get("fma")):
        return 0
    return 64 if has.get("avx512f") else 32


NBYTES = vector_nbytes()


def few(a: Any, b: Any, out: Any) -> bool:
    """Tell whether a product out = a @ b is of few and contiguous rows, of arrays that fit and are of one type that kernels have, and BLAS is given one thread."""
    (m, k), (rows, n) = a.shape, b.shape
    return bool(
        m <= MOST_ROWS
        and m * k * n >= LEAST
        and NBYTES
        and rows == k
        and out.shape == (m, n)
        and a.dtype in REALS
        and a.dtype == b.dtype == out.dtype
        and a.flags.c_contiguous
        and out.flags.c_contiguous
        and (os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")) == "1"
    )
