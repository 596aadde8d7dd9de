"""The benchmarks of GPUs do the right work before there is a GPU: their arguments fit every kernel, and their step learns as the CPU's does."""

from __future__ import annotations

import shutil

import mpidml_kernels
import numpy as np
import pytest

from benchmarks import card
from benchmarks.gpu_kernels.arguments import arguments, arity
from benchmarks.gpu_kernels.run import SMALL, cases, share_of_copy, share_of_gemm, verdict
from benchmarks.gpu_step import ours, peer_torch
from benchmarks.gpu_step.run import SMOKE, flops, measure
from benchmarks.training_step import ours as on_cpu
from benchmarks.training_step.problem import N_COMPARED
from benchmarks.training_step.run import check_losses
from mpidml.runtime import device
from mpidml.runtime.device import Found
from tests.ranks import ROOT, need, python
from tests.shim import cupy_double


@pytest.fixture
def kernels():
    need(shutil.which("g++"), "a C++ compiler (g++)")
    return mpidml_kernels.cuda(cupy_double)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_every_kernel_takes_the_arguments_that_are_made_for_it(backend):
    for family in mpidml_kernels.FAMILIES:
        for name, law in family.LAWS.items():
            with np.errstate(all="ignore"):
                getattr(mpidml_kernels.backend(backend), name)(*arguments(family, name, SMALL[arity(law)]))


def test_every_kernel_of_cuda_is_measured_beside_a_copy(kernels):
    found = {name: share_of_copy(kernels, family, name, sizes, 1, 1) for family, name, sizes in cases(small=True)}
    assert {"add", "dropout", "softmax_xent"} <= found.keys() and "matmul" not in found
    assert all(rate > 0 and share > 0 for rate, share in found.values())


def test_products_are_held_to_cublas(kernels):
    asked = []

    def gemm(a, b, out, beta):
        asked.append(beta)
        cupy_double.matmul(a, b, out)

    found = share_of_gemm(kernels, gemm, (6, 5, 4), 1, 1)
    assert found.keys() == {"matmul", "matmul_add"} and set(asked) == {0.0, 1.0}


def test_a_verdict_is_plain():
    assert [verdict(0.9, 0.85), verdict(0.8, 0.85), verdict(0.8, None)] == ["met", "MISSED, target x0.85", ""]


def losses(make):
    return [make() for _ in range(N_COMPARED)]


def cpu_losses():
    return losses(on_cpu.stepper.__wrapped__(tuple(SMOKE["sizes"]), SMOKE["batch"]))  # one that begins anew


@pytest.mark.parametrize("streams", ["lazy", "eager"])
def test_the_step_on_the_device_loses_what_the_step_on_the_cpu_does(kernels, streams, capsys):
    with cupy_double.streams(streams):
        check_losses(cpu_losses(), losses(ours.stepper(kernels, **SMOKE)), "the device")
    assert "agree" in capsys.readouterr().out


def test_a_step_at_another_rate_is_not_compared(kernels, monkeypatch):
    monkeypatch.setattr(ours, "RATE", 2 * ours.RATE)
    with pytest.raises(AssertionError, match="would mean nothing"):
        check_losses(cpu_losses(), losses(ours.stepper(kernels, **SMOKE)), "the device")


@pytest.mark.bench
def test_pytorchs_step_does_the_same_work():
    check_losses(cpu_losses(), losses(peer_torch.stepper(**SMOKE, device="cpu")), "torch")


def test_sides_are_compared_and_a_verdict_waits_for_real_sizes(kernels, capsys):
    sides = {"ours": lambda sizes, batch: ours.stepper(kernels, sizes, batch), "peer": lambda sizes, batch: ours.stepper(kernels, sizes, batch)}
    for smoke in (True, False):
        measure(SMOKE, sides, 1, 1, smoke)
        out = capsys.readouterr().out
        assert "of ours" in out and ("met" in out or "MISSED" in out) != smoke
    assert flops([784, 512, 512, 10], 128) == 2 * 128 * (2 * 784 * 512 + 3 * (512 * 512 + 512 * 10))


@pytest.mark.parametrize("folder", ["gpu_kernels", "gpu_step", "gpu_allreduce"])
def test_without_a_gpu_a_benchmark_says_why_it_is_left_out(folder):
    if not card.lacking():
        return  # there it runs, and test_benchmarks.py sees to it
    result = python([ROOT / "benchmarks" / folder / "run.py", "--smoke"], 100)
    assert result.code == 0 and f"left out: {card.lacking()}\n" in result.out and "met" not in result.out.split(), result


def test_what_keeps_a_gpu_from_running_is_what_device_cuda_lacks(monkeypatch):
    for found, said in ((Found("h", lacks="there is no driver"), "no GPU: there is no driver"), (Found("h"), "")):
        monkeypatch.setattr(device, "_look", lambda wanted, rank, found=found: (found, None))
        assert card.lacking.__wrapped__() == said


def test_figures_made_by_the_double_say_that_no_gpu_was_used():
    assert card.facts(cupy_double)["GPU"] == "none: no GPU was used, CUDA C ran on the CPU"
