"""Train sleeping layers by one schedule: `mpirun -n STAGES python measure.py SCHEDULE MICROBATCHES SECONDS CLOCKS`; rank 0 prints one JSON line.

The strategy is driven as `mpidml train` drives it, with its trace on: what each rank did when is read from that.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from above import Times, told

from benchmarks.machine import Watch
from mpidml.core.action import COMPUTE, TRACED
from mpidml.core.job import Job
from mpidml.core.program import Program
from mpidml.core.trace import KINDS
from mpidml.runtime.comm import CountedComm, world
from mpidml.strategies.base import Run

LAYER = Path(__file__).resolve().parent / "sleeping.py"


COMPUTES = [KINDS.index(TRACED[op]) for op in COMPUTE]


def traced(comm: CountedComm, schedule: str, n_items: int, seconds: float, clocks: int, n_chunks: int) -> tuple[Program, list[dict[str, Any]]]:
    """Train; return the program of a clock, and the trace of each rank (Collective on comm)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.toml")
        path.write_text(f'[[layer]]\ntype = "{LAYER}"\nseconds = {seconds / n_chunks}\n\n' * comm.size * n_chunks)
        x, y = np.zeros((clocks * n_items, 2), np.float32), np.arange(clocks * n_items) % 2
        given: dict[str, Any] = {"optimizer": "sgd", "scale": "none", "hold_out": 0.0, "trace": True, "deterministic": True}
        job = Job(strategy="pipeline", schedule=schedule, model=str(path), microbatches=n_items, batch=n_items, steps=clocks, **given)
        run = Run(job, comm, quiet=True, write=False, brief=False, arrays=[x, y])
        run.drive()
        program = run.strategy.program()
        assert run.trace is not None
        traces = comm.allgather(run.trace.columns())
        run.end(None)
        run.data.close()
    return program, traces


def times(columns: dict[str, Any], clock: int) -> Times:
    """Return of each compute of a rank's clock when it began, and its seconds."""
    at = np.flatnonzero(np.isin(columns["kind"], COMPUTES) & (columns["clock"] == clock))
    return list(zip(columns["start"][at].tolist(), columns["seconds"][at].tolist(), strict=True))


def main() -> None:
    """Measure."""
    schedule, n_items, seconds, clocks, n_chunks = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    comm = CountedComm(world())
    with Watch() as watch:
        program, traces = traced(comm, schedule, n_items, seconds, clocks, n_chunks)
    cpu = sum(comm.allgather(watch.cpu_seconds))
    if comm.rank == 0:
        print(told(program, [[times(columns, clock) for columns in traces] for clock in range(clocks)], watch.others(cpu)))


if __name__ == "__main__":
    main()
