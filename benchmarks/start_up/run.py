"""Answer "how long until the first step?": `python benchmarks/start_up/run.py [--ranks 1 2 16 64] [--rounds R] [--smoke]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

from benchmarks.machine import Watch, describe, unhindered
from benchmarks.rounds import Sample, interleave
from mpidml.runtime.launch import THREAD_VARIABLES, mpirun_command

HERE = Path(__file__).resolve().parent
MEASURE = HERE / "measure.py"
CPU_TARGET, OPENED_TARGET = 1.0, 1500
"""Of a rank until its first step, warm: seconds of CPU, files opened."""
LIMIT_SECONDS = 900


def started(n: int, arguments: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Start n ranks of measure.py; return what rank 0 printed."""
    words, ready = mpirun_command(n, env)
    ready["MPIDML_BENCHMARK_STARTED"] = str(time.time())
    done = subprocess.run([*words, sys.executable, str(MEASURE), *arguments], env=ready, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{n} ranks ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def starts(sizes: list[int], n_rounds: int, env: dict[str, str]) -> list[str]:
    """Print a row for each number of ranks, with a cold cache (the first alone) and a warm one; return what missed its target."""
    heads = "ranks cache  imported  MPI_Init  first step   CPU a rank: imported, first step   opened  listed  modules  compiled  others"
    print(f"\nseconds since mpirun was started, of the last rank; a cache is cold once\n{heads}")
    missed: list[str] = []
    of_first = 0
    for n in sizes:
        with tempfile.TemporaryDirectory() as cold:
            for round_number in range(n_rounds + 1):
                with Watch() as watch:
                    found = started(n, ["start"], env | {"NUMBA_CACHE_DIR": cold})
                others = watch.others(found["cpu"] * n)
                name = "warm" if round_number else "cold"
                times = f"{found['imported']:8.2f}s {found['started']:8.2f}s {found['stepped']:10.2f}s {found['cpu_imported']:21.2f}s {found['cpu']:10.2f}s"
                counts = f"{found['opened']:8d} {found['listed']:7d} {found['modules']:8d} {found['compiled']:9d}"
                print(f"{n:5d} {name:>5} {times} {counts} {others:7.2f}", flush=True)
                if name == "cold":
                    of_first = of_first or found["compiled"]
                    missed += [f"{n} ranks, cold: {found['compiled']} compilations, not {of_first}"] * (found["compiled"] != of_first)
                elif found["compiled"] or found["cpu"] > CPU_TARGET or found["opened"] > OPENED_TARGET:
                    missed.append(f"{n} ranks, warm: {found['compiled']} compilations, {found['cpu']:.2f} s of CPU, {found['opened']} files a rank")
    return missed


def crowded(n_rounds: int, n_steps: int, env: dict[str, str]) -> None:
    """Print what a step takes where every rank has one thread, and where each has as many as there are cores."""
    n_cores = len(os.sched_getaffinity(0))

    def measure(n: int, n_threads: int) -> Sample:
        with Watch() as watch:
            found = started(n, ["threads", str(n_steps)], env | dict.fromkeys(THREAD_VARIABLES, str(n_threads)))
        return Sample(found["seconds"], watch.busy_seconds / watch.seconds)

    n = max(2, n_cores)
    few = {f"{n} ranks x 1 thread": (n, 1), f"{n} ranks x {n} threads": (n, n), "1 rank x 1 thread": (1, 1), f"1 rank x {n_cores} thread(s)": (1, n_cores)}
    variants = {name: lambda of=of: measure(*of) for name, of in few.items()}
    rounds = interleave(variants, n_rounds)
    base = next(iter(few))
    print(f"\na step of 240-512-512-10, 256 samples, {n_cores} core(s), {n_rounds} rounds of {n_steps} steps; ratios within a round")
    for name in few:
        ratios = sorted(rounds.ratios(name, base))
        print(f"{name:24s} {1e3 * rounds.median(name):9.2f} ms   x{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 16, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size, with the cache as it is; the figures mean nothing")
    options = parser.parse_args()
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    env = unhindered(os.environ)
    if options.smoke:
        env["MPIDML_BENCHMARK_STARTED"] = str(time.time())
        print(json.dumps(started(2, ["start"], env)))
        return
    missed = starts(options.ranks, options.rounds, env)
    crowded(5, 200, env)
    print("\n".join(f"MISSED {what}" for what in missed) or "met    all targets")


if __name__ == "__main__":
    main()
