"""Call CUDA kernels with NumPy arrays, so that one test set serves every backend: arrays go to the device and come back."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import mpidml_kernels
import numpy as np

from tests.ranks import need
from tests.shim import cupy_double

ORDERS = ("forward", "reverse", "shuffle")
_elsewhere: list[Gpu] = []


class OnDevice:
    """The kernels of `families` for NumPy arrays, by `cupy` (a module); `around()` is a context that each call runs in."""

    def __init__(self, name: str, cupy: Any, families: tuple[ModuleType, ...], around: Callable[[], Any] = contextlib.nullcontext) -> None:
        self.name, self.cupy, self.families, self.around = name, cupy, families, around
        self.kernels = mpidml_kernels.cuda(cupy, *families)

    def __getattr__(self, kernel: str) -> Callable[..., Any]:
        getattr(self.kernels, kernel)  # an unknown name is told here

        def call(*arguments: Any) -> Any:
            device = _elsewhere[-1].counted(self) if _elsewhere else self
            with device.around():
                there = [_there(device.cupy, a) if isinstance(a, np.ndarray) else a for a in arguments]
                result = getattr(device.kernels, kernel)(*there)
                for host, array in zip(arguments, there, strict=True):
                    if isinstance(host, np.ndarray) and host.flags.writeable:
                        host[...] = array.get()
            return result

        return call


def _there(cupy: Any, a: np.ndarray[Any, Any]) -> Any:
    """Return the array there, a transposed one as such."""
    return cupy.asarray(a.T).T if a.ndim > 1 and a.flags.f_contiguous and not a.flags.c_contiguous else cupy.asarray(a)


class Gpu:
    """Take the calls of what is "on the shim", by a CuPy for a GPU, and count them. Each array has memory of its own there, whose end a memory checker knows."""

    def __init__(self, cupy: Any) -> None:
        self.cupy, self.n_calls = cupy, 0
        self.kernels: dict[tuple[ModuleType, ...], OnDevice] = {}

    def counted(self, asked: OnDevice) -> OnDevice:
        self.n_calls += 1
        if asked.families not in self.kernels:
            self.kernels[asked.families] = OnDevice("gpu", self.cupy, asked.families, self.cupy.cuda.using_allocator)
        return self.kernels[asked.families]

    @contextlib.contextmanager
    def instead(self) -> Iterator[None]:
        """Let what is called on the shim run here; a test that never does fails, since it would pass for having run."""
        before = self.n_calls
        _elsewhere.append(self)
        try:
            yield
        finally:
            _elsewhere.pop()
        assert self.n_calls > before, "no kernel was called on the GPU"


def on_shim(order: str, *families: ModuleType) -> OnDevice:
    """Return the kernels on the CPU, threads and blocks in this order, every access looked at; on the GPU where a `Gpu` stands in."""
    need(shutil.which("g++"), "a C++ compiler (g++)")
    return OnDevice(f"shim, {order}", cupy_double, families, lambda: cupy_double.threads(order))
