"""Declare each CPU kernel for float32 and float64, with the options that keep it both fast and true to its reference.

What is declared is compiled, or loaded from the cache, for a type when it is first called with it, or by `take`.

Importing this module imports Numba.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numba
import numba.np.linalg as numba_linalg
from numba.core.compiler_lock import global_compiler_lock


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


REALS = ("f4", "f8")


def kernel(signature: str, fastmath: set[str] = ELEMENTWISE) -> Callable[[Callable[..., Any]], Any]:
    """Declare a function for both types: `T` stands for the type, `R1` and `R2` for arrays that are only read (contiguous, maybe read-only).

    It takes no others, what is compiled is cached on disk, and the interpreter lock is released while a kernel runs.
    """
    for ndim in "12":
        signature = re.sub(rf"\bR{ndim}\b", f"Array(T,{ndim},'C',True)", signature)
    compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)

    def declare(function: Callable[..., Any]) -> Any:
        kernel: Any = compiled(function)
        kernel.declared = {real: re.sub(r"\bT\b", real, signature) for real in REALS}
        # Numba calls the first, and then its result, where nothing is compiled yet; the second, and then looks again, where nothing that is fits.
        kernel._compile_for_args = functools.partial(_first, kernel)
        kernel._search_new_conversions = functools.partial(_search, kernel)
        return kernel

    return declare


def take(module: ModuleType, reals: Sequence[str] = REALS) -> None:
    """Compile what a module declares for these types, or load it from the cache (4 ms for each kernel and type)."""
    for kernel in vars(module).values():
        if hasattr(kernel, "declared"):
            _take(kernel, reals)


def _first(kernel: Any, *arguments: Any) -> Any:
    _take(kernel, _reals(arguments) or REALS)
    return kernel


def _search(kernel: Any, *arguments: Any) -> bool:
    """Take what fits, and say whether Numba is to look again: it has to learn, too, that an array may pass for one that is only read."""
    missing = [real for real in _reals(arguments) if real in kernel.declared]
    _take(kernel, missing)
    return bool(type(kernel)._search_new_conversions(kernel, *arguments)) or bool(missing)


def _reals(arguments: Sequence[Any]) -> list[str]:
    return [real for real in REALS if any(getattr(given, "dtype", None) == real for given in arguments)]


def _take(kernel: Any, reals: Sequence[str]) -> None:
    with global_compiler_lock:
        kernel.disable_compile(False)
        for real in reals:
            if real in kernel.declared:
                kernel.compile(kernel.declared[real])
                del kernel.declared[real]
        if kernel.signatures:
            kernel.disable_compile()  # for whatever else it is called with
