"""Train the problem with this project: `mpirun -n N python ours.py FILE STEPS STRATEGY [SHARE]`; rank 0 prints one JSON line.

The strategy is driven as `mpidml train` drives it; the first clocks, in which memory is first touched, are not timed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import N_COMPARED, RATE
from benchmarks.machine import Watch
from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm, world
from mpidml.strategies.base import train


def main() -> None:
    """Train, and find the rate from when the clocks ended."""
    given, steps, strategy = np.load(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    comm = CountedComm(world())
    hidden = tuple(given[f"layers.{i}.weight"].shape[1] for i in range(sum(name.endswith(".weight") for name in given) - 1))
    batch = given["order"].shape[1]
    job = Job(strategy=strategy, hidden=hidden, batch=batch, steps=steps, lr=RATE, scale="none", hold_out=0.0)
    kept: dict[str, object] = {}
    with Watch() as watch:
        train(job, comm, quiet=True, write=False, keep=kept, data=[given["x"], given["y"]])
    cpu = sum(comm.allgather(watch.cpu_seconds))
    if comm.rank == 0:
        rows = kept["metrics"]
        assert isinstance(rows, list)
        skipped = min(N_COMPARED, steps - 1)
        seconds = rows[-1]["seconds"] - rows[skipped - 1]["seconds"]
        rate = (rows[-1]["samples"] - rows[skipped - 1]["samples"]) / seconds
        print(json.dumps({"samples_per_second": rate, "losses": [row["loss"] for row in rows[:skipped]], "others": watch.others(cpu)}))


if __name__ == "__main__":
    main()
