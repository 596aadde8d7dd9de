"""Say on what a figure was measured: CPU, BLAS and its kernel, threads, matrix-product rates, load, and what other processes took.

`python benchmarks/machine.py` prints it. A BLAS reads its environment once, when it is loaded, so each rate is measured in a child process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpidml.runtime.launch import THREAD_VARIABLES, mpirun_command, without_launcher

ROOT = Path(__file__).resolve().parents[1]
HINDERING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables by which an environment can take OpenBLAS's best kernel away; they act when NumPy is imported."""
GEMM = (2048, 2048, 2048)
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def as_set(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` for a measurement: BLAS as the environment sets it, one thread a library."""
    paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), env.get("PYTHONPATH", "")]))
    return without_launcher(env) | dict.fromkeys(THREAD_VARIABLES, "1") | {"PYTHONPATH": paths, "OMP_WAIT_POLICY": "passive"}


def unhindered(env: Mapping[str, str]) -> dict[str, str]:
    """Return `as_set(env)` without the variables that hold OpenBLAS back."""
    return {name: value for name, value in as_set(env).items() if name not in HINDERING}


def ranks_of(python: str, n: int, env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the words that start n ranks of a python, and their environment: of another environment's python by the mpirun beside it."""
    beside = Path(python).absolute().with_name("mpirun")
    own = python == sys.executable or not beside.exists()
    launcher, ready = mpirun_command(n, env if own else {**env, "MPIDML_MPIRUN": str(beside)})
    return [*launcher, python], ready


def describe(env: Mapping[str, str], smoke: bool = False) -> list[str]:
    """Return the lines that stand above every table; takes a few seconds, or less with `smoke`, which measures a small product."""
    held = [f"{name}={env[name]}" for name in HINDERING if name in env]
    free = _gemm(unhindered(env), smoke)
    given = _gemm(as_set(env), smoke) if held else free
    n_cores = len(os.sched_getaffinity(0))
    return [
        f"date      {time.strftime('%Y-%m-%d %H:%M')}",
        f"CPU       {cpu_model()}, {n_cores} core(s) to run on, load {os.getloadavg()[0]:.1f}",
        f"BLAS      {free['blas']}, kernel {free['kernel']}; NumPy {free['numpy']}, Numba {free['numba']}, Python {free['python']}",
        f"threads   BLAS {free['blas_threads']}, Numba {free['numba_threads']} in each process",
        f"sgemm     {free['gflops']:.0f} GFLOP/s unhindered, {given['gflops']:.0f} as the environment sets it (kernel {given['kernel']}; "
        + (", ".join(held) if held else "neither " + " nor ".join(HINDERING) + " is set, so they are one")
        + ")",
    ]


def cpu_model() -> str:
    """Return the processor's name, family and model, and its widest vectors: a name alone may be that of a whole line."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "neither AVX-512 nor AVX2"
    return f"{fields.get('model name', 'unknown')} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}, {vectors})"


class Watch:
    """Measure a span of time: `seconds` of wall, `cpu_seconds` of this process, `busy_seconds` of all cores of the machine."""

    def __enter__(self) -> Watch:
        self._start = _busy_seconds(), time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        busy, cpu, wall = self._start
        self.seconds = time.perf_counter() - wall
        self.cpu_seconds = time.process_time() - cpu
        self.busy_seconds = _busy_seconds() - busy

    def others(self, own_cpu_seconds: float | None = None) -> float:
        """Return what processes that are not ours took meanwhile, in cores; `own_cpu_seconds`: of all of ours (default: this one)."""
        own = self.cpu_seconds if own_cpu_seconds is None else own_cpu_seconds
        return max(0.0, self.busy_seconds - own) / max(self.seconds, 1e-9)


def _busy_seconds() -> float:
    """Return the CPU time all processes have had since boot: user, nice, system, interrupts, and what the host of this machine stole."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_PER_SECOND


def _gemm(env: Mapping[str, str], smoke: bool) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), "gemm", *(["smoke"] if smoke else [])]
    return dict(json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout))


def _measure_gemm(smoke: bool) -> dict[str, Any]:
    """Return the best rate of a float32 matrix product in this process, and what the loaded libraries say of themselves."""
    import platform

    import numba
    import numpy as np
    import threadpoolctl

    m, k, n = (64, 64, 64) if smoke else GEMM
    a, b, c = np.ones((m, k), np.float32), np.ones((k, n), np.float32), np.empty((m, n), np.float32)
    best = float("inf")
    for _ in range(2 if smoke else 8):
        start = time.perf_counter()
        np.matmul(a, b, out=c)
        best = min(best, time.perf_counter() - start)
    blas: dict[str, Any] = next((pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"), {})
    return {
        "gflops": 2e-9 * m * k * n / best,
        "blas": f"{blas.get('internal_api', 'unknown')} {blas.get('version', '')}".strip(),
        "kernel": blas.get("architecture", "unknown"),
        "blas_threads": blas.get("num_threads", 1),
        "numba_threads": numba.get_num_threads(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["gemm"]:
        print(json.dumps(_measure_gemm("smoke" in sys.argv)))
    else:
        print("\n".join(describe(os.environ)))
