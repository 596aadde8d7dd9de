"""Compute on arrays: each kernel once as a NumPy reference (its meaning), once as Numba code (its speed), with one signature.

Vectors, dense layers and losses exist as CUDA C, too (`cuda`): nothing of the package runs on a GPU yet, but the kernels are held to the same tests, on the CPU.

A backend is a namespace of all kernels. Outputs are given by the caller; compiled kernels allocate nothing (a reference may use temporaries).
Importing this package imports no compiler.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from mpidml_kernels import adaptive, cache, csr, dense, loss, low_rank, norm, packed, rounded, rows, sparse, split, update
from mpidml_kernels.kernel import Kernel
from mpidml_kernels.launch import Gpu

__all__ = ["BACKENDS", "LAWS", "Backend", "Kernel", "backend", "cuda", "is_compiled"]

AT_ONCE = (dense, norm, loss, update, adaptive, rows)
CODES = (rounded, packed, sparse, low_rank)
ON_DEMAND = (*CODES, csr, split)
FAMILIES = AT_ONCE + ON_DEMAND
LAWS: dict[str, Kernel] = {name: law for family in FAMILIES for name, law in family.LAWS.items()}
BACKENDS = {"numpy": "reference", "numba": "cpu"}
GPU = "cuda"


class Backend(SimpleNamespace):
    """Hold every kernel of one implementation as an attribute, and its `name`; what few jobs need, the codecs' kernels, is loaded when first asked for."""

    name: str
    gpu: Gpu | None = None

    def load(self, *families: ModuleType) -> None:
        """Take in the kernels of whole families."""
        for family in families:
            if self.gpu is None:
                module = importlib.import_module(f"{family.__name__}.{BACKENDS[self.name]}")
                vars(self).update({law: getattr(module, law) for law in family.LAWS})
            else:
                module = importlib.import_module(f"{family.__name__}.gpu")
                vars(self).update({law: functools.partial(getattr(module, law), self.gpu) for law in family.LAWS})

    def __getattr__(self, kernel: str) -> Any:
        family = next((f for f in ON_DEMAND if kernel in f.LAWS), None)
        if family is None:
            raise AttributeError(f"the backend has no kernel '{kernel}'", name=kernel, obj=self)
        self.load(family)
        return vars(self)[kernel]


@functools.cache
def backend(name: str) -> Backend:
    """Return the kernels called "numpy" or "numba"; the latter loads or compiles them (0.2 s from the cache, tens of seconds without)."""
    if name not in BACKENDS:
        raise ValueError(f"backend: there is no '{name}'; choose one of: {', '.join(BACKENDS)}")
    if name == "numba":
        cache.prepare()
    kernels = Backend(name=name)
    kernels.load(*AT_ONCE)
    return kernels


def cuda(cupy: Any, *families: ModuleType) -> Backend:
    """Return the kernels for arrays of `cupy` on the current device, of all families or of these; each file is compiled at its first launch."""
    kernels = Backend(name=GPU, gpu=Gpu(cupy))
    kernels.load(*(families or AT_ONCE))
    return kernels


def is_compiled() -> bool:
    """Tell whether backend("numba") will find its kernels compiled, so that a program can say why it takes its time."""
    cache.prepare()
    return any(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbi"))
