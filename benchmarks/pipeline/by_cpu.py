"""Say what a clock would take on cores of its own: `mpirun -n N python by_cpu.py FILE STEPS MICROBATCHES SCHEDULE`; rank 0 prints one JSON line.

Each compute and each update is taken by its CPU time, which does not count what other processes take of a core, the median over the clocks; a replay of
the program puts them in their order on N ranks, with OVERHEAD_SECONDS for every action besides. What is left of the neighbours is their part of cache and memory bus.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch
from benchmarks.pipeline.ours import job_of
from benchmarks.pipeline.problem import N_COMPARED
from mpidml.core.action import COMPUTE, TRACED, Action
from mpidml.core.lowering import computes
from mpidml.core.replay import Seconds, replay
from mpidml.core.trace import KINDS
from mpidml.runtime import staged_step
from mpidml.runtime.comm import CountedComm, world
from mpidml.strategies.base import Run

OVERHEAD_SECONDS = 100e-6
"""The target of `../pipeline_bubble`, which not every schedule meets."""


def medians(columns: dict[str, Any], kinds: list[str], n_each: int) -> list[float]:
    """Return of each of the `n_each` events of some kinds in a clock its median over the clocks that are counted."""
    in_clocks = columns["clock"] >= 0  # rows that are scored have none
    seconds = columns["seconds"][in_clocks & np.isin(columns["kind"], [KINDS.index(kind) for kind in kinds])].reshape(-1, n_each)
    assert seconds.size, f"the trace has no {kinds}"
    found: list[float] = np.median(seconds[min(N_COMPARED, len(seconds) - 1) :], axis=0).tolist()
    return found


def main() -> None:
    """Train with CPU time for the executor's clock, and replay."""
    given = np.load(sys.argv[1])
    comm, job = CountedComm(world()), job_of(given, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    staged_step.clock_now = time.thread_time
    with Watch() as watch:
        run = Run(job.with_values({"trace": True}, "benchmark"), comm, quiet=True, write=False, brief=False, arrays=[given["x"], given["y"]])
        run.drive()
    program = run.strategy.program()
    assert run.trace is not None
    traces = comm.allgather(run.trace.columns())
    kept: dict[str, Any] = {}
    run.end(kept)
    run.data.close()
    cpu = sum(comm.allgather(watch.cpu_seconds))
    if comm.rank == 0:
        took: dict[Action, float] = {}
        for own, columns, actions in zip(computes(program), traces, program.lists, strict=True):
            updates = [action for action in actions if action.op == "U"]
            took.update(zip(own, medians(columns, [TRACED[op] for op in COMPUTE], len(own)), strict=True))
            took.update(zip(updates, medians(columns, [TRACED["U"]], len(updates)), strict=True))
        seconds = replay(program, Seconds(lambda action: took[action], overhead=OVERHEAD_SECONDS)).seconds
        losses = [row["loss"] for row in kept["metrics"][: min(N_COMPARED, len(kept["metrics"]) - 1)]]
        print(json.dumps({"samples_per_second": job.batch / seconds, "losses": losses, "others": watch.others(cpu)}))


if __name__ == "__main__":
    main()
