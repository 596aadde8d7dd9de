"""Say which GPU there is, with whose software, or why there is none; and tell the seconds of work on it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DRIVER = Path("/proc/driver/nvidia/version")
PROBE = 'extern "C" __global__ void probe(int* x) { x[0] = 7; }'


@functools.cache
def lacking() -> str:
    """Return why no kernel can run on a GPU here, "" where one can. CuPy is imported only where there is a driver and a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no GPU: there is no NVIDIA driver (libcuda.so.1)"
    n = ctypes.c_int()
    if (code := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(n))) or not n.value:
        return f"no GPU: the NVIDIA driver shows none (CUDA error {code})"
    try:
        import cupy
    except ImportError as error:
        return f"no CuPy (pip install 'mpidml[cuda13]' or '[cuda12]'): {error}"
    return unable(cupy)


def unable(cupy: Any) -> str:
    """Return why CuPy cannot compile and run a kernel on the current device, "" where it can: a GPU without NVRTC fails at the first launch."""
    try:
        x = cupy.zeros(1, "i4")
        cupy.RawModule(code=PROBE).get_function("probe")((1,), (1,), (x,))
        found = int(x.get()[0])
    except Exception as error:  # CuPy's own types, NVRTC's, OSError of a library: each of them is the reason
        return f"CuPy runs no kernel on this GPU: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "" if found == 7 else f"CuPy runs no kernel on this GPU: the probe wrote {found}, not 7"


def facts(cupy: Any) -> dict[str, str]:
    """Return what a figure was measured with, by name: the GPU, its driver, CuPy and the compiler of kernels. A driver of version 0 is none."""
    runtime, nvrtc = cupy.cuda.runtime, "none"
    with contextlib.suppress(Exception):  # without NVRTC nothing was compiled, and the figure says so
        nvrtc = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    packages = f"{cupy.__version__}, CUDA runtime {_version(runtime.runtimeGetVersion())}, NVRTC {nvrtc}"
    if not runtime.driverGetVersion():
        return {"GPU": "none: no GPU was used, CUDA C ran on the CPU", "CuPy": packages}
    given = runtime.getDeviceProperties(0)
    card = f"{given['name'].decode()}, compute capability {given['major']}.{given['minor']}, {given['multiProcessorCount']} multiprocessors"
    number = re.search(r"\s(\d{3}[.\d]+)\s", DRIVER.read_text()) if DRIVER.exists() else None
    return {
        "GPU": f"{card}, {given['totalGlobalMem'] / 2**30:.0f} GiB; {runtime.getDeviceCount()} of them",
        "driver": f"{number[1] if number else 'unknown'}, for CUDA up to {_version(runtime.driverGetVersion())}",
        "CuPy": packages,
    }


def _version(number: int) -> str:
    """Return a version as CUDA numbers it, 13020, as it is called, 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def seconds_a_call(cupy: Any, work: Callable[[], Any], n: int) -> float:
    """Return wall seconds a call of `work` takes on the device, over n calls and one wait; call it once before, since a first launch compiles."""
    stream = cupy.cuda.get_current_stream()
    stream.synchronize()
    began = time.perf_counter()
    for _ in range(n):
        work()
    stream.synchronize()
    return (time.perf_counter() - began) / n
