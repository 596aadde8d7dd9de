"""Run each test that calls CUDA's kernels once more, on a GPU. Nothing lists these tests, since a list would forget some.

A test is one of them if it or a fixture of it comes to `on_shim`, by whatever functions of the test modules, or is given a backend that is there, unless it
speaks of what the shim alone has.
Threads of a GPU take no order that a test could choose, so of several orders one runs there.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest
from mpidml_kernels import Backend

from tests.shim.backend import ORDERS, Gpu, OnDevice, on_shim

SHIM_ALONE = {"KernelError", "cupy_double", "kernels"}
"""Its errors, its streams and threads, and what lies beneath an `OnDevice`, where no GPU stands in."""


@functools.cache
def gpu() -> Gpu:
    """Return the GPU, on whose kernels all tests of this process share."""
    import cupy

    return Gpu(cupy)


@pytest.fixture(autouse=True)
def place(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have, in a test's second run, what is on the shim on the GPU. For every test of the folder, since pytest forgets a fixture that a test does not name."""
    with gpu().instead() if getattr(request, "param", "here") == "gpu" else contextlib.nullcontext():
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that comes to `on_shim` a second place to run at."""
    fixtures = [found[-1].func for found in metafunc._arg2fixturedefs.values()]
    if runs_on_gpu(metafunc.function, *fixtures, given=bool(of_devices(metafunc.definition))):
        metafunc.parametrize("place", ["here", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take to the GPU one of several orders, and of several backends the one that can go there."""
    items[:] = [item for item in items if not is_repeated(item)]


def is_repeated(item: pytest.Item) -> bool:
    """Tell whether a test's run at the GPU is another's, too: it is given a later order of threads, or a backend of the CPU in place of a device's."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    if given.get("place") != "gpu":
        return False
    return given.get("order", ORDERS[0]) in ORDERS[1:] or any(not isinstance(given[name], OnDevice) for name in of_devices(item))


def of_devices(test: pytest.Item) -> set[str]:
    """Return the parameters of a test among whose values are kernels on the shim."""
    marks = (mark.args for mark in test.iter_markers("parametrize"))
    return {name for name, values, *_ in marks if isinstance(name, str) and any(isinstance(value, OnDevice) for value in values)}


def runs_on_gpu(test: Any, *fixtures: Any, given: bool = False) -> bool:
    """Tell whether a test calls kernels that are on the shim, and speaks of nothing that the shim alone has.

    It comes to them by itself, is `given` them, or calls those of a backend in whose place a fixture may put them.
    """
    own, brought = dict(reached(test)), dict(each for fixture in fixtures for each in reached(fixture))
    calls = given or _on_shim(own) or (_on_shim(brought) and any(isinstance(value, Backend) for value in own.values()))
    return calls and not SHIM_ALONE & (own | brought).keys()


def _on_shim(found: dict[str, Any]) -> bool:
    return any(value is on_shim or isinstance(value, OnDevice) for value in found.values())


def reached(function: Any, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the names, with what they stand for (None: an attribute), that a function and the functions of the test modules that it names speak of."""
    seen, function = seen if seen is not None else set(), inspect.unwrap(function)
    if id(function) in seen or not hasattr(function, "__code__"):
        return
    seen.add(id(function))
    for name in _names(function.__code__):
        if name not in function.__globals__:
            yield name, None
            continue
        value = function.__globals__[name]
        for each in value if isinstance(value, list | tuple) else (value,):
            yield name, each
            if getattr(inspect.unwrap(each) if callable(each) else each, "__module__", "").startswith(__package__):
                yield from reached(each, seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
