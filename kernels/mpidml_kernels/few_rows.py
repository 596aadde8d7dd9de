"""Tell where products of few rows are made by kernels of ours, in which no matrix is copied: BLAS copies the whole of the right one before it multiplies.

    a @ b.T    dots.py      b as it lies, row by row
    a @ b      strips.py    b as it lies, in strips of its columns; where vectors have 64 bytes

Of 64 rows that copy is a third of BLAS's time, of 512 it is little. Where BLAS has several threads, it multiplies.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import os
from typing import Any

from llvmlite import binding

MOST_ROWS, LEAST = 192, 1 << 18
"""Up to how many rows BLAS was measured to be slower, and from how many multiplications on a product is worth a look."""


def vector_nbytes() -> int:
    """Return how many bytes of a row are taken at once; 0 on a CPU for which nothing was measured, or if Numba compiles for another, and BLAS multiplies."""
    has = binding.get_host_cpu_features()
    if os.environ.get("NUMBA_CPU_NAME") or not (has.get("avx2") and has.get("fma")):
        return 0
    return 64 if has.get("avx512f") else 32


NBYTES = vector_nbytes()


def few(a: Any, out: Any) -> bool:
    """Tell whether a product out (m, n) of rows a (m, k) is of few, and of contiguous ones, and BLAS has one thread."""
    m, k = a.shape
    return bool(
        m <= MOST_ROWS
        and m * k * out.shape[1] >= LEAST
        and NBYTES
        and a.flags.c_contiguous
        and out.flags.c_contiguous
        and (os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")) == "1"
    )
