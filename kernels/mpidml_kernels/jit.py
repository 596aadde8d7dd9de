"""Compile each CPU kernel at import for float32 and float64, with the options that keep it both fast and true to its reference.

Importing this module imports Numba.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import numba
import numba.np.linalg as numba_linalg


def _spare_scipy() -> None:
    """Let Numba take for granted that SciPy's BLAS is there, which it would load to see: a tenth of what a rank does until its first step, for no kernel.

    Each function that calls BLAS looks for it again, when it is compiled.
    """
    before = getattr(numba_linalg, "ensure_blas", None)
    if before is not None:
        numba_linalg.ensure_blas = lambda: None
        try:
            importlib.import_module("numba.np.arraymath")
        finally:
            numba_linalg.ensure_blas = before


_spare_scipy()

# Neither `nnan` nor `ninf`: a NaN in a gradient must reach the caller. `reassoc` only where a sum has to vectorise.
ELEMENTWISE = {"contract", "arcp", "nsz"}
REDUCTION = ELEMENTWISE | {"reassoc"}
# Nothing: what one side subtracts must be, to the bit, what another side adds.
EXACT: set[str] = set()


def kernel(signature: str, fastmath: set[str] = ELEMENTWISE) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for both types: `T` stands for the type, `R1` and `R2` for arrays that are only read (contiguous, maybe read-only).

    The signatures are eager, the result is cached on disk, and the interpreter lock is released while a kernel runs.
    """
    for ndim in "12":
        signature = re.sub(rf"\bR{ndim}\b", f"Array(T,{ndim},'C',True)", signature)
    signatures = [re.sub(r"\bT\b", real, signature) for real in ("f4", "f8")]
    return numba.njit(signatures, cache=True, nogil=True, error_model="numpy", fastmath=fastmath)
