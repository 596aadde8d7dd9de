"""Compute on arrays: each kernel once as a NumPy reference (its meaning), once as Numba code (its speed), with one signature.

All of them exist as CUDA C, too (`cuda`), held to the same tests on the CPU.

A backend is a namespace of all kernels, and of what else is done with arrays where they lie (`arrays`).
Outputs are given by the caller; compiled kernels allocate nothing (a reference may use temporaries).
Importing this package imports no compiler.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from mpidml_kernels import adaptive, arrays, cache, csr, dense, loss, low_rank, norm, packed, rounded, rows, sparse, split, update
from mpidml_kernels.kernel import Kernel
from mpidml_kernels.launch import Gpu

__all__ = ["BACKENDS", "LAWS", "Backend", "Kernel", "backend", "cuda", "is_compiled", "warm", "warm_cuda"]

AT_ONCE = (dense, loss, update)
CODES = (rounded, packed, sparse, low_rank)
ON_DEMAND = (norm, adaptive, rows, *CODES, csr, split)
FAMILIES = AT_ONCE + ON_DEMAND
LAWS: dict[str, Kernel] = {name: law for family in FAMILIES for name, law in family.LAWS.items()}
BACKENDS = {"numpy": "reference", "numba": "cpu"}
GPU = "cuda"


class Backend(SimpleNamespace):
    """Hold every kernel of one implementation as an attribute, and its `name`; what not every job needs is loaded when first asked for."""

    name: str
    gpu: Gpu | None = None

    def load(self, *families: ModuleType) -> None:
        """Take in the kernels of whole families; what is not compiled yet is, by one process at a time."""
        for family in families:
            place = f"{family.__name__}.{'gpu' if self.gpu is not None else BACKENDS[self.name]}"
            module = importlib.import_module(place)
            if self.name == "numba":
                cache.once(_name(family), functools.partial(_jit().take, module))
            kernels = {law: getattr(module, law) for law in family.LAWS}
            vars(self).update(kernels if self.gpu is None else {law: functools.partial(kernel, self.gpu) for law, kernel in kernels.items()})

    def fetch(self, real: str) -> None:
        """Load from the cache, or on a device compile, what its families have for "f4" or "f8", which is else done at a kernel's first call."""
        for family in FAMILIES:
            if next(iter(family.LAWS)) not in vars(self):
                continue
            if self.name == "numba":
                _jit().take(importlib.import_module(f"{family.__name__}.cpu"), [real])
            elif self.gpu is not None:
                for each in {real, "f8"} if family is update else {real}:  # sums are float64, whatever they are of
                    self.gpu.compile(_name(family), each)

    def __getattr__(self, kernel: str) -> Any:
        family = next((f for f in ON_DEMAND if kernel in f.LAWS), None)
        if family is None:
            raise AttributeError(f"the backend has no kernel '{kernel}'", name=kernel, obj=self)
        self.load(family)
        return vars(self)[kernel]


@functools.cache
def backend(name: str) -> Backend:
    """Return the kernels called "numpy" or "numba"; the latter compiles what the cache lacks (tens of seconds if that is all)."""
    if name not in BACKENDS:
        raise ValueError(f"backend: there is no '{name}'; choose one of: {', '.join(BACKENDS)}")
    if name == "numba":
        cache.prepare()
    kernels = Backend(name=name, **arrays.of_numpy())
    kernels.load(*AT_ONCE)
    return kernels


def cuda(cupy: Any, *families: ModuleType) -> Backend:
    """Return the kernels for arrays of `cupy` on the current device, of all families or of these; each file is compiled at its first launch."""
    gpu = Gpu(cupy)
    kernels = Backend(name=GPU, gpu=gpu, **arrays.of_cupy(cupy, lambda what, nbytes: gpu.allocating(what, nbytes), gpu.naming))
    kernels.load(*(families or AT_ONCE))
    return kernels


def is_compiled(*families: ModuleType) -> bool:
    """Tell whether backend("numba") will find its kernels, and these families, compiled, so that a program can say why it takes its time."""
    cache.prepare()
    return cache.is_compiled(*map(_name, AT_ONCE + families))


def warm(tell: Callable[[str], None]) -> None:
    """Compile every kernel that is not in the cache, family by family, and `tell` what is done, where."""
    if said := cache.prepare():
        tell(said)
    lacking = [family for family in FAMILIES if not cache.is_compiled(_name(family))]
    kernels = Backend(name="numba")
    for family in lacking:
        began = time.perf_counter()
        kernels.load(family)
        tell(f"{_name(family):<10} {len(family.LAWS):3d} kernels  {time.perf_counter() - began:6.1f} s")
    where = os.environ[cache.VARIABLE]
    tell(f"{len(LAWS)} kernels are compiled in {where}" + ("" if lacking else ": there was nothing to do"))


def warm_cuda(kernels: Backend) -> int:
    """Compile all files for the kernels' GPU, for both types, and return how many kernels they give; CuPy keeps them between runs."""
    assert kernels.gpu is not None
    for family in FAMILIES:
        kernels.load(family)
    for real in ("f4", "f8"):
        kernels.fetch(real)
    return len(LAWS)


def _jit() -> Any:
    """Return the module that imports Numba."""
    return importlib.import_module("mpidml_kernels.jit")


def _name(family: ModuleType) -> str:
    return family.__name__.rpartition(".")[2]
