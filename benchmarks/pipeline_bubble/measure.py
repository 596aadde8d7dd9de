"""Train sleeping layers by one schedule: `mpirun -n STAGES python measure.py SCHEDULE MICROBATCHES SECONDS CLOCKS`; rank 0 prints one JSON line.

The strategy is driven as `mpidml train` drives it, with its trace on: what each rank did when is read from that.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch
from mpidml.core.action import COMPUTE, TRACED, Action
from mpidml.core.job import Job
from mpidml.core.lowering import computes
from mpidml.core.program import Program
from mpidml.core.replay import Seconds, replay
from mpidml.core.trace import KINDS
from mpidml.runtime.comm import CountedComm, world
from mpidml.strategies.base import Run

A_BIT = 1e-7
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


def clock_of(program: Program, traces: list[dict[str, Any]], clock: int) -> tuple[float, float, float, float]:
    """Return of one clock the share of idle time, the seconds from its first compute to the end of its last, and what is above those of computes, per action.

    What computes alone would take is a replay of the program, each as long as it was. What is above that is divided by the actions of a rank, and by
    those on the longest chain, in which each waits for the one before, on whatever rank: as many as a replay grows by, when each action takes a bit longer.
    """
    took: dict[Action, float] = {}
    starts, ends = [], []
    for own, columns in zip(computes(program), traces, strict=True):
        at = np.flatnonzero(np.isin(columns["kind"], COMPUTES) & (columns["clock"] == clock))
        assert len(at) == len(own)
        took.update(zip(own, columns["seconds"][at].tolist(), strict=True))
        starts.append(columns["start"][at[0]])
        ends.append(columns["start"][at[-1]] + columns["seconds"][at[-1]])
    wall = float(max(ends) - min(starts))
    ideal, grown = (replay(program, Seconds(lambda action: took.get(action, 0.0), overhead=each)).seconds for each in (0.0, A_BIT))
    chain, listed = (grown - ideal) / A_BIT, max(len(actions) for actions in program.lists)
    return 1 - sum(took.values()) / (wall * program.n_ranks), wall, (wall - ideal) / listed, (wall - ideal) / chain


def main() -> None:
    """Measure; the first clock, in which memory is first touched, is not counted."""
    schedule, n_items, seconds, clocks, n_chunks = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    comm = CountedComm(world())
    with Watch() as watch:
        program, traces = traced(comm, schedule, n_items, seconds, clocks, n_chunks)
    cpu = sum(comm.allgather(watch.cpu_seconds))
    if comm.rank == 0:
        found = [clock_of(program, traces, clock) for clock in range(1, clocks)]
        names = ("bubble", "seconds", "of_rank", "of_chain")
        told = {name: median(of) for name, of in zip(names, zip(*found, strict=True), strict=True)} | {"least": min(each for *_, each in found)}
        print(json.dumps(told | {"others": watch.others(cpu), "cores": cpu / watch.seconds}))


if __name__ == "__main__":
    main()
