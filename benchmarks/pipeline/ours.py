"""Train the problem with this project: `mpirun -n N python ours.py FILE STEPS MICROBATCHES SCHEDULE [--apart] [--tensor] [--numpy]`; rank 0 prints one JSON line.

The strategy is driven as `mpidml train` drives it; the first clocks, in which memory is first touched, are not timed. `--apart`: every rank trains a net
of its own, half as deep, and none waits for another. `--tensor`: ranks are parts of each layer, not stages. `--numpy`: no kernels are loaded, for a
smoke run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import RATE
from benchmarks.machine import Watch
from benchmarks.pipeline.problem import N_COMPARED, widths
from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm, world
from mpidml.strategies.base import train


def job_of(given: Mapping[str, Any], steps: int, microbatches: int, schedule: str, depth: float = 1.0) -> Job:
    """Return the job, of a net with a share of the hidden layers."""
    hidden, backend = widths(given)[1:-1], "numpy" if "--numpy" in sys.argv else "numba"
    job = Job(strategy="pipeline", schedule=schedule, microbatches=microbatches, batch=given["order"].shape[1], steps=steps, backend=backend)
    return job.with_values({"hidden": hidden[: int(len(hidden) * depth)], "lr": RATE, "optimizer": "sgd", "scale": "none", "hold_out": 0.0}, "benchmark")


def main() -> None:
    """Train, and find the rate from when the clocks ended."""
    given, steps, microbatches, schedule, apart = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], "--apart" in sys.argv
    comm = CountedComm(world())
    own = CountedComm(comm.mpi.Split(comm.rank)) if apart else comm
    job = job_of(given, steps, microbatches, schedule, 0.5 if apart else 1.0)
    if "--tensor" in sys.argv:
        job = job.with_values({"strategy": "tensor"}, "benchmark")
    kept: dict[str, object] = {}
    with Watch() as watch:
        train(job, own, quiet=True, write=False, keep=kept, data=[given["x"], given["y"]])
    cpu = sum(comm.allgather(watch.cpu_seconds))
    if own.rank == 0:
        rows = kept["metrics"]
        assert isinstance(rows, list)
        skipped = min(N_COMPARED, steps - 1)
        seconds = rows[-1]["seconds"] - rows[skipped - 1]["seconds"]
        rate = (rows[-1]["samples"] - rows[skipped - 1]["samples"]) / seconds
        told = {"samples_per_second": rate, "losses": [row["loss"] for row in rows[:skipped]], "others": watch.others(cpu)}
    rates = comm.allgather(rate if own.rank == 0 else None)
    if comm.rank == 0:
        print(json.dumps(told | ({"samples_per_second": min(rates)} if apart else {})))


if __name__ == "__main__":
    main()
