"""Call CUDA kernels with NumPy arrays, so that one test set serves every backend: arrays go to the device and come back."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import mpidml_kernels
import numpy as np

from tests.ranks import need
from tests.shim import cupy_double

ORDERS = ("forward", "reverse", "shuffle")


class OnDevice:
    """The kernels of `families` for NumPy arrays, by `cupy` (a module); `around()` is a context that each call runs in."""

    def __init__(self, name: str, cupy: Any, families: tuple[ModuleType, ...], around: Callable[[], Any] = contextlib.nullcontext) -> None:
        self.name, self.cupy, self.around = name, cupy, around
        self.kernels = mpidml_kernels.cuda(cupy, *families)

    def __getattr__(self, kernel: str) -> Callable[..., Any]:
        function = getattr(self.kernels, kernel)

        def call(*arguments: Any) -> Any:
            with self.around():
                there = [self.cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
                result = function(*there)
                for host, device in zip(arguments, there, strict=True):
                    if isinstance(host, np.ndarray) and host.flags.writeable:
                        host[...] = device.get()
            return result

        return call


def on_shim(order: str, *families: ModuleType) -> OnDevice:
    """Return the kernels on the CPU, threads and blocks in this order, every access looked at."""
    need(shutil.which("g++"), "a C++ compiler (g++)")
    return OnDevice(f"shim, {order}", cupy_double, families, lambda: cupy_double.threads(order))
