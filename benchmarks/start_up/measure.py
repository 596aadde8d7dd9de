"""Be one rank of a run of one step: note what it took until then, and print it as one JSON line. `threads` measures steps of the ranks that share a host."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

looks = {"open": 0, "os.listdir": 0, "os.scandir": 0}
STARTED = "MPIDML_BENCHMARK_STARTED"


def count(event: str, arguments: tuple[object, ...]) -> None:
    """Count what Python opens and lists; of what it asks of the file system besides, `strace -c` tells."""
    if event in looks:
        looks[event] += 1


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def first_step() -> None:
    """Import what a run needs, start MPI, train for a step; rank 0 prints when it was where, and all ranks' sums."""
    since = float(os.environ[STARTED])
    sys.addaudithook(count)
    from mpidml.runtime.threads import budget_threads

    budget_threads(os.environ)
    import mpi4py

    mpi4py.rc.initialize = False
    from mpidml.cli import parse
    from mpidml.strategies.base import train

    imported, cpu_imported = time.time() - since, cpu_seconds()
    from mpi4py import MPI

    MPI.Init_thread(MPI.THREAD_MULTIPLE)
    started = time.time() - since
    _, job = parse(["train", "--steps", "1", "--epochs", "0", "--hidden", "16", "--batch", "64", "--strategy", "data_parallel"])
    train(job, quiet=True, write=False)
    own = {
        "imported": imported,
        "started": started,
        "stepped": time.time() - since,
        "cpu_imported": cpu_imported,
        "cpu": cpu_seconds(),
        "opened": looks["open"],
        "listed": looks["os.listdir"] + looks["os.scandir"],
        "modules": len(sys.modules),
        "compiled": compilations(),
    }
    every = MPI.COMM_WORLD.gather(own)
    if every is not None:
        last = {name: max(of[name] for of in every) for name in ("imported", "started", "stepped", "modules", "opened", "listed")}
        cpu = {name: sum(of[name] for of in every) / len(every) for name in ("cpu_imported", "cpu")}
        print(json.dumps(last | cpu | {"compiled": sum(of["compiled"] for of in every)}), flush=True)
    MPI.Finalize()


def compilations() -> int:
    """Return how many kernels this process has compiled itself: signatures that it did not find in the cache."""
    from mpidml_kernels import backend

    return sum(sum(kernel.stats.cache_misses.values()) for kernel in vars(backend("numba")).values() if hasattr(kernel, "stats"))


def steps(n: int) -> None:
    """Train for `n` clocks with as many BLAS threads as the environment says; rank 0 prints the seconds a clock."""
    import mpidml

    found = mpidml.train(mpidml.Job(hidden=(512, 512), batch=256, steps=n, epochs=0, strategy="data_parallel"), quiet=True, write=False)
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps({"seconds": found["wall_seconds"] / n}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "threads":
        steps(int(sys.argv[2]))
    else:
        first_step()
