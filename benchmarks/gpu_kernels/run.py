"""Answer "how much of the GPU's memory rate does each kernel reach, and of cuBLAS each product?": `python benchmarks/gpu_kernels/run.py [--rounds R] [--smoke]`."""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import card
from benchmarks.rounds import Sample, interleave

TARGET, PRODUCT_TARGET = 0.85, 0.95
SIZES = {1: (1 << 26,), 2: (1 << 16, 1 << 10), 3: (1 << 13, 1 << 13, 4)}
"""By how many sizes a law has: far more than a GPU's caches hold. The third are those of a product of low rank."""
SPARSE_SIZES = {1: (1 << 24,), 2: (1 << 24, 64)}
SMALL = {1: (1000,), 2: (40, 70), 3: (30, 20, 4)}
PRODUCTS = [(4096, 4096, 4096), (128, 784, 512), (2048, 1024, 1024)]
NO_TARGET = {"kth_magnitude", "orthonormalise", "csr_take", "csr_matmul", "csr_matmul_backward"}
"""Their laws count each value once; they read some again, by digits, rows or columns."""


def cases(small: bool = False) -> Iterator[tuple[Any, str, tuple[int, ...]]]:
    """Yield (family, kernel, sizes) of every kernel that is CUDA C; products of matrices are measured by themselves."""
    from mpidml_kernels import FAMILIES, csr

    from benchmarks.gpu_kernels.arguments import arity

    for family in FAMILIES:
        if (files(family) / "gpu.cu").is_file():
            for name, law in family.LAWS.items():
                if name not in ("matmul", "matmul_add"):
                    yield family, name, (SMALL if small else SPARSE_SIZES if family is csr else SIZES)[arity(law)]


def timed(cupy: Any, work: Callable[[], Any], n: int) -> Callable[[], Sample]:
    """Return a measurement of n calls, and make one call before it."""
    work()
    return lambda: Sample(card.seconds_a_call(cupy, work, n))


def share_of_copy(kernels: Any, family: Any, name: str, sizes: tuple[int, ...], n_rounds: int, n_calls: int) -> tuple[float, float]:
    """Return bytes per second by the kernel's law, and over those of a copy of as many bytes in the same rounds."""
    from benchmarks.gpu_kernels.arguments import arguments

    cupy, kernel, nbytes = kernels.gpu.cupy, getattr(kernels, name), family.LAWS[name].nbytes(*sizes)
    given = [cupy.asarray(a) if hasattr(a, "ctypes") and a.ndim else a for a in arguments(family, name, sizes)]
    source, target = (cupy.zeros(max(1, nbytes // 8), "f4") for _ in range(2))  # read once, written once
    variants = {"copy": timed(cupy, lambda: cupy.copyto(target, source), n_calls), name: timed(cupy, lambda: kernel(*given), n_calls)}
    rounds = interleave(variants, n_rounds)
    return nbytes / rounds.median(name), 1 / rounds.ratio(name, "copy")


def share_of_gemm(kernels: Any, gemm: Callable[..., Any], sizes: tuple[int, ...], n_rounds: int, n_calls: int) -> dict[str, tuple[float, float]]:
    """Return, of `matmul` and `matmul_add`, operations per second, and over those of cuBLAS's call that does the same."""
    from mpidml_kernels import dense

    from benchmarks.gpu_kernels.arguments import arguments

    cupy, found = kernels.gpu.cupy, {}
    for name, beta in (("matmul", 0.0), ("matmul_add", 1.0)):
        a, b, out = (cupy.asarray(x) for x in arguments(dense, name, sizes))
        ours, theirs = functools.partial(getattr(kernels, name), a, b, out), functools.partial(gemm, a, b, out, beta)
        rounds = interleave({"cuBLAS": timed(cupy, theirs, n_calls), name: timed(cupy, ours, n_calls)}, n_rounds)
        found[name] = dense.LAWS[name].flops(*sizes) / rounds.median(name), 1 / rounds.ratio(name, "cuBLAS")
    return found


def verdict(share: float, target: float | None) -> str:
    """Say plainly whether a target is met."""
    return "" if target is None else "met" if share >= target else f"MISSED, target x{target:g}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=20, help="calls in each measurement")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest sizes; the figures mean nothing")
    options = parser.parse_args()
    cupy = card.opened(options.smoke)
    if cupy is None:
        return
    import mpidml_kernels
    from cupy import cublas

    kernels = mpidml_kernels.cuda(cupy)
    n_rounds, n_calls = (1, 1) if options.smoke else (options.rounds, options.calls)
    print(f"\n{'kernel':24s}{'sizes':>22s}{'GB/s':>10s}{'of a copy':>11s}")
    for family, name, sizes in cases(options.smoke):
        rate, share = share_of_copy(kernels, family, name, sizes, n_rounds, n_calls)
        target = None if options.smoke or name in NO_TARGET else TARGET
        print(f"{name:24s}{'x'.join(map(str, sizes)):>22s}{rate / 1e9:10.1f}{f'x{share:.2f}':>11s}  {verdict(share, target)}", flush=True)

    def gemm(a: Any, b: Any, out: Any, beta: float) -> None:
        cublas.gemm("N", "N", a, b, out=out, alpha=1.0, beta=beta)

    from mpidml_kernels.dense.gpu import SMALL as SMALL_PRODUCT

    print(f"\n{'product':24s}{'sizes':>22s}{'GFLOP/s':>10s}{'of cuBLAS':>11s}")
    for sizes in [(30, 20, 4)] if options.smoke else PRODUCTS:
        for name, (rate, share) in share_of_gemm(kernels, gemm, sizes, n_rounds, n_calls).items():
            target = None if options.smoke or name == "matmul_add" or math.prod(sizes) <= SMALL_PRODUCT else PRODUCT_TARGET
            print(f"{name:24s}{'x'.join(map(str, sizes)):>22s}{rate / 1e9:10.0f}{f'x{share:.2f}':>11s}  {verdict(share, target)}", flush=True)


if __name__ == "__main__":
    main()
