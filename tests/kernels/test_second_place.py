"""What runs on the CPU under checks runs on a GPU, too: nothing is forgotten, and nothing passes for having run there."""

import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from mpidml_kernels import Backend, update

from tests.kernels import test_codecs, test_gpu, test_kernels, test_split
from tests.kernels.conftest import is_repeated, of_devices, runs_on_gpu
from tests.ranks import ROOT, need, python
from tests.shim import cupy_double
from tests.shim.backend import ORDERS, Gpu, on_shim
from tests.shim.compiled import KernelError


def taken(module):
    return {name.removeprefix("test_") for name, test in vars(module).items() if name.startswith("test_") and runs_on_gpu(test)}


def test_tests_that_come_to_the_shim_by_whatever_function_go_to_the_gpu():
    assert {"vector_kernels_agree_with_their_references", "nan_passes_every_kernel"} <= taken(test_gpu)
    agreements = {name for name in vars(test_kernels) if name.endswith(("agree_with_the_reference", "agrees_with_the_reference"))}
    assert len(agreements) > 4 and {name.removeprefix("test_") for name in agreements} <= taken(test_kernels)
    assert "kernels_of_parts_agree_with_the_reference" in taken(test_split)


def test_what_never_comes_there_or_speaks_of_the_shims_own_errors_does_not():
    assert not {"matmul_takes_transposed_views", "laws_count_operations_and_bytes", "compiled_tanh_and_exp_are_accurate_over_their_range"} & taken(
        test_kernels
    )
    assert "a_broken_kernel_is_noticed" not in taken(test_gpu) and "packing_keeps_every_code_in_as_few_bytes_as_can_be" not in taken(test_codecs)
    assert runs_on_gpu(lambda: on_shim("forward", update)) and not runs_on_gpu(lambda: on_shim("forward", update) and KernelError)
    assert not runs_on_gpu(lambda: on_shim("forward", update).kernels), "what lies beneath is the double's"


def test_a_test_whose_fixture_puts_such_kernels_in_a_backends_place_goes_to_the_gpu():
    def fixture():
        return on_shim("forward", update)

    for test, calls_a_backend in (("fp16_is_numpys_and_keeps_every_half", True), ("packing_keeps_every_code_in_as_few_bytes_as_can_be", False)):
        assert not runs_on_gpu(function := getattr(test_codecs, f"test_{test}")) and runs_on_gpu(function, fixture) == calls_a_backend


def test_of_several_orders_and_backends_one_goes_to_the_gpu():
    @pytest.mark.parametrize("backend", [Backend(name="numpy"), on_shim("forward", update)])
    def test(backend):
        raise NotImplementedError

    item = SimpleNamespace(iter_markers=lambda name: test.pytestmark)
    values, taken_there = test.pytestmark[0].args[1], []
    for place, order, backend in itertools.product(("here", "gpu"), ORDERS, values):
        item.callspec = SimpleNamespace(params={"place": place, "order": order, "backend": backend})
        taken_there += [(place, order, backend)] * (not is_repeated(item))
    assert len(taken_there) == 7 and taken_there[-1] == ("gpu", "forward", values[1])
    assert runs_on_gpu(test, given=bool(of_devices(item))) and not runs_on_gpu(test)


def test_a_test_that_calls_no_kernel_there_fails():
    with pytest.raises(AssertionError, match="no kernel was called on the GPU"), Gpu(cupy_double).instead():
        pass


NAN = ROOT / "tests/kernels/test_gpu.py"


@pytest.mark.parametrize("there", [False, True])
def test_with_a_gpu_they_run_and_without_one_they_are_left_out_and_that_is_said(there):
    """The double stands for the GPU: what is tried is the way there."""
    need(shutil.which("g++"), "a C++ compiler (g++)")
    words = ["-m", "pytest", "-m", "gpu", *(["-p", "tests.shim.as_gpu"] if there else []), f"{NAN}::test_nan_passes_every_kernel", "-v"]
    result = python(words, 100, {"CI": "true"})
    if there:
        assert result.code == 0 and "2 call(s) of kernels by the double in place of a GPU" in result.out and "left out" not in result.out, result
    else:
        assert result.code == 5 and "passed" not in result.out and "1 test(s) left out: marked `gpu`, and " in result.out, result


def test_each_cupy_that_tests_are_given_copies_what_a_stream_is_waited_for(cupys):
    x, host, copies = cupys.asarray(np.arange(3, dtype=np.float32)), np.full(3, -1, np.float32), cupys.cuda.Stream(non_blocking=True)
    ready = cupys.cuda.get_current_stream().record()
    copies.wait_event(ready)
    x.get(stream=copies, out=host, blocking=False)
    copies.synchronize()
    assert host.tolist() == [0, 1, 2]


def test_the_lazy_double_shows_a_wait_that_is_missing_and_the_eager_one_does_not():
    for streams, expected in (("lazy", [-1, -1, -1]), ("eager", [0, 1, 2])):
        with cupy_double.streams(streams):
            x, host = cupy_double.asarray(np.arange(3, dtype=np.float32)), np.full(3, -1, np.float32)
            x.get(stream=cupy_double.cuda.Stream(non_blocking=True), out=host, blocking=False)
        assert host.tolist() == expected
