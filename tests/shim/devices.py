"""Give tests a device for networks: CuPy's double, with streams as late as may be or at once, or a GPU where there is one."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from typing import Any

import mpidml_kernels
import pytest

from mpidml.core.device import Device
from tests.ranks import need
from tests.shim import cupy_double

PLACES = ["lazy", "eager", pytest.param("gpu", marks=pytest.mark.gpu)]
_placed: list[Device] = []


@contextlib.contextmanager
def placed(place: str) -> Iterator[None]:
    """Let `device` be the double, its streams "lazy" or "eager", or a "gpu", which several ranks share."""
    if place == "gpu":
        around, of = contextlib.nullcontext(), _gpu()
    else:
        need(shutil.which("g++"), "a C++ compiler (g++)")
        around, of = _double(place), Device("cuda", "the double", mpidml_kernels.cuda(cupy_double))
    with around:
        _placed.append(of)
        try:
            yield
        finally:
            _placed.pop()


def device() -> Device:
    """Return what is placed, else the double."""
    return _placed[-1] if _placed else Device("cuda", "the double", mpidml_kernels.cuda(cupy_double))


def over_the_double(patched: pytest.MonkeyPatch, more_than: int = 0) -> dict[str, int]:
    """Return the bytes that arrays of the double, of `more_than` so many elements, bring down ("get") and up ("set") from now on, as long as `patched` holds."""
    moved = {"get": 0, "set": 0}

    def count(name: str) -> None:
        real = getattr(cupy_double.ndarray, name)

        def call(self: Any, *given: Any, **named: Any) -> Any:
            moved[name] += self.nbytes if self.size > more_than else 0
            return real(self, *given, **named)

        patched.setattr(cupy_double.ndarray, name, call)

    for name in moved:
        count(name)
    return moved


@contextlib.contextmanager
def _double(streams: str) -> Iterator[None]:
    with cupy_double.streams(streams), cupy_double.threads("forward", checked=False):
        yield


@functools.cache
def _gpu() -> Device:
    import cupy

    return Device("cuda", "a GPU", mpidml_kernels.cuda(cupy))
