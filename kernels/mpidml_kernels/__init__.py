"""Compute on arrays: each kernel once as a NumPy reference (its meaning) and once as Numba code (its speed), with one signature.

A backend is a namespace of all kernels. Outputs are given by the caller; compiled kernels allocate nothing (a reference may use temporaries).
Importing this package imports no compiler.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import SimpleNamespace

from mpidml_kernels import adaptive, cache, csr, dense, loss, norm, rows, update
from mpidml_kernels.kernel import Kernel

__all__ = ["BACKENDS", "LAWS", "Backend", "Kernel", "backend", "is_compiled"]

FAMILIES = (dense, norm, loss, update, adaptive, rows, csr)
LAWS: dict[str, Kernel] = {name: law for family in FAMILIES for name, law in family.LAWS.items()}
BACKENDS = {"numpy": "reference", "numba": "cpu"}


class Backend(SimpleNamespace):
    """Hold every kernel of one implementation as an attribute, and its `name`."""

    name: str


@functools.cache
def backend(name: str) -> Backend:
    """Return the kernels called "numpy" or "numba"; the latter loads or compiles them (0.2 s from the cache, tens of seconds without)."""
    if name not in BACKENDS:
        raise ValueError(f"backend: there is no '{name}'; choose one of: {', '.join(BACKENDS)}")
    if name == "numba":
        cache.prepare()
    modules = [importlib.import_module(f"{family.__name__}.{BACKENDS[name]}") for family in FAMILIES]
    kernels = {law: getattr(module, law) for family, module in zip(FAMILIES, modules, strict=True) for law in family.LAWS}
    return Backend(name=name, **kernels)


def is_compiled() -> bool:
    """Tell whether backend("numba") will find its kernels compiled, so that a program can say why it takes its time."""
    cache.prepare()
    return any(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbi"))
