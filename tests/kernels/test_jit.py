"""A kernel is compiled, or loaded, for the types that it declares, when they are first met; it takes no others."""

import importlib

import numpy as np
import pytest
from mpidml_kernels import FAMILIES, LAWS, Backend, cache, jit, update

import tests.kernels.twice as module


@pytest.fixture
def twice():
    """A kernel out = 2 a that nothing has been called with yet."""
    cache.prepare()
    return importlib.reload(module).twice


def n_taken(kernel):
    return len(kernel.signatures)


def doubled(kernel, dtype):
    a, out = np.arange(5, dtype=dtype), np.zeros(5, dtype)
    kernel(a, out)
    return out.tolist() == [0, 2, 4, 6, 8]


def test_each_type_is_taken_when_it_is_met(twice):
    assert n_taken(twice) == 0
    assert doubled(twice, np.float32) and n_taken(twice) == 1
    assert doubled(twice, np.float32) and n_taken(twice) == 1
    assert doubled(twice, np.float64) and n_taken(twice) == 2


def test_one_type_alone_can_be_taken_before_it_is_met(twice):
    jit.take(module, ["f8"])
    assert n_taken(twice) == 1 and doubled(twice, np.float64) and n_taken(twice) == 1
    assert doubled(twice, np.float32) and n_taken(twice) == 2


@pytest.mark.parametrize("first", [[], ["f4"], ["f4", "f8"]], ids=str)
def test_other_types_are_refused_and_nothing_is_compiled_for_them(twice, first):
    jit.take(module, first)
    for a in (np.arange(5), np.arange(10, dtype=np.float32)[::2], np.arange(10.0)[::2]):
        with pytest.raises(TypeError, match="No matching definition"):
            twice(a, a.copy())
    assert n_taken(twice) == 2 and doubled(twice, np.float32) and doubled(twice, np.float64)


def test_an_array_that_can_only_be_read_is_taken_too(twice):
    a, out = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    a.flags.writeable = False
    twice(a, out)
    assert out[4] == 8 and n_taken(twice) == 1


def test_a_kernel_without_the_hook_would_compile_for_whatever_it_meets(twice):
    """The broken variant: Numba alone."""
    del twice._compile_for_args
    a = np.arange(5)
    twice(a, a.copy())
    assert n_taken(twice) == 1


def test_no_kernel_takes_a_number_of_another_type_for_its_own():
    """With one type taken, a call with the other must fit nothing: so an array tells the types apart, which unlike a number is never converted."""
    for family in FAMILIES:
        for name, kernel in vars(importlib.import_module(f"{family.__name__}.cpu")).items():
            for real, signature in getattr(kernel, "declared", {}).items():
                assert f"{real}[" in signature or f"Array({real}," in signature, name


def test_a_backend_takes_the_kernels_of_one_type():
    kernels = Backend(name="numba")
    kernels.load(update)
    kernels.fetch("f4")
    assert all("f4" not in kernel.declared for name, kernel in vars(kernels).items() if name in update.LAWS)
    Backend(name="numpy").fetch("f4")


def test_no_kernel_has_the_name_of_what_a_backend_does():
    """Such a kernel would not be found before its family is loaded, since what the class has comes first."""
    assert not set(LAWS) & set(dir(Backend))
