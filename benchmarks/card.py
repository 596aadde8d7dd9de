"""Say which GPU there is, with whose software, or why there is none; and tell the seconds of work on it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from mpidml.runtime import device
from mpidml.runtime.cuda_driver import spelt

DRIVER = Path("/proc/driver/nvidia/version")


@functools.cache
def lacking() -> str:
    """Return why networks cannot compute on a GPU here, "" where they can, as `--device cuda` finds out."""
    return (of := device.lacks()) and f"no GPU: {of}"


def opened(smoke: bool) -> Any:
    """Print on which machine and card a benchmark runs, and return CuPy; None where there is no GPU, which is said."""
    print("\n".join(describe(os.environ, smoke)))
    if reason := lacking():
        print(f"left out: {reason}")
        return None
    import cupy

    print("\n".join(f"{name:9s} {text}" for name, text in facts(cupy).items()))
    return cupy


def facts(cupy: Any) -> dict[str, str]:
    """Return what a figure was measured with, by name: the GPU, its driver, CuPy and the compiler of kernels. A driver of version 0 is none."""
    runtime, nvrtc = cupy.cuda.runtime, "none"
    with contextlib.suppress(Exception):  # without NVRTC nothing was compiled, and the figure says so
        nvrtc = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    packages = f"{cupy.__version__}, CUDA runtime {spelt(runtime.runtimeGetVersion())}, NVRTC {nvrtc}"
    if not runtime.driverGetVersion():
        return {"GPU": "none: no GPU was used, CUDA C ran on the CPU", "CuPy": packages}
    given = runtime.getDeviceProperties(0)
    card = f"{given['name'].decode()}, compute capability {given['major']}.{given['minor']}, {given['multiProcessorCount']} multiprocessors"
    number = re.search(r"\s(\d{3}[.\d]+)\s", DRIVER.read_text()) if DRIVER.exists() else None
    return {
        "GPU": f"{card}, {given['totalGlobalMem'] / 2**30:.0f} GiB; {runtime.getDeviceCount()} of them",
        "driver": f"{number[1] if number else 'unknown'}, for CUDA up to {spelt(runtime.driverGetVersion())}",
        "CuPy": packages,
    }


def seconds_a_call(cupy: Any, work: Callable[[], Any], n: int) -> float:
    """Return wall seconds a call of `work` takes on the device, over n calls and one wait; call it once before, since a first launch compiles."""
    stream = cupy.cuda.get_current_stream()
    stream.synchronize()
    began = time.perf_counter()
    for _ in range(n):
        work()
    stream.synchronize()
    return (time.perf_counter() - began) / n
