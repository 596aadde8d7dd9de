"""Measure how much of the sums of a step hides behind what the rank computes, on the ranks at hand; rank 0 prints one JSON line.

    compute   forward | layer n | .. | layer 2 | layer 1 |             a third forward, the rest in as many equal parts as there are layers
    sums                        bucket ->  bucket -> bucket ->         each may start when its part is computed

The step is that of `data_parallel` (`runtime.stepping`) with made-up layers: no weights change, so that nothing but computing and summing takes time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch
from mpidml.collectives.base import Collective, Done, Halves, make_collective
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.compressed_sum import Step
from mpidml.runtime.progress_thread import ByHand, ProgressThread
from mpidml.runtime.stepping import Bucket, Part, Stepper
from mpidml.runtime.training import N_MEASURED

Work = Callable[[float], None]
N_PRODUCT = 192


def sleeping() -> Work:
    """Return what takes so many seconds and no core: a kernel of another device, as it looks from here."""
    return time.sleep


def multiplying(comm: CountedComm) -> Work:
    """Return what takes about so many seconds of a core: products of matrices, the same number on every rank (Collective on comm)."""
    a = np.ones((N_PRODUCT, N_PRODUCT), np.float32)
    b = np.empty_like(a)
    taken = []
    for _ in range(50):
        began = time.perf_counter()
        np.matmul(a, a, out=b)
        taken.append(time.perf_counter() - began)
    usual = max(comm.allgather(median(taken)))

    def work(seconds: float) -> None:
        for _ in range(round(seconds / usual)):
            np.matmul(a, a, out=b)

    return work


class Layers:
    """A task that computes for `seconds` and tells its layers' gradients as they become final, from the last to the first."""

    worker, loss_factor = 0, 1.0

    def __init__(self, work: Work, seconds: float, cuts: list[tuple[int, int]]) -> None:
        self.work, self.seconds, self.cuts = work, seconds, cuts

    def compute(self, turn: Any, report: Callable[[int, int], None] | None) -> tuple[tuple[()], tuple[float, ...]]:
        """Compute."""
        if self.seconds:
            self.work(self.seconds / 3)
        for lo, hi in self.cuts:
            if self.seconds:
                self.work(self.seconds * 2 / 3 / len(self.cuts))
            if report is not None:
                report(lo, hi)
        return (), (0.0, 1.0, *(0.0,) * N_MEASURED)

    def finish(self, turn: Any, report: Any) -> None:
        """Score nothing."""


class Bench:
    """One gradient, a bucket for each layer, and the ways to sum it; the first layer, whose sum nothing follows, has a quarter of another's parameters."""

    def __init__(self, comm: CountedComm, n: int, n_layers: int, steps: int) -> None:
        self.comm, self.steps = comm, steps
        self.gradient, self.weights = np.zeros(n, np.float32), np.zeros(n, np.float32)
        edges = [0, *(round(n * (layer + 0.25) / (n_layers - 0.75)) for layer in range(n_layers))]
        self.cuts = list(reversed(list(pairwise(edges))))

    def timed(self, run: Callable[[], None]) -> float:
        """Return the seconds a step of the slower rank."""
        self.comm.Barrier()
        began = time.perf_counter()
        run()
        return float(max(self.comm.allgather((time.perf_counter() - began) / self.steps)))

    def ours(self, collective: Collective | None, work: Work, seconds: float, progress: ByHand) -> float:
        """Time steps of `data_parallel`; without a collective nothing is summed."""
        halves = [
            Halves(Done(), Done(), lo, hi, self.gradient[lo:hi], False) if collective is None else collective.halves(self.gradient[lo:hi], self.weights[lo:hi])
            for lo, hi in self.cuts
        ]
        store: Any = SimpleNamespace(step=lambda total, tuning: None)
        buckets = [Bucket(lo, hi, half, store) for (lo, hi), half in zip(self.cuts, halves, strict=True)]
        nothing = lambda *_: None
        strategy = SimpleNamespace(
            comm=self.comm, trace=None, job=SimpleNamespace(wait_limit=60.0, check_replicas=0), progress=progress, step=Step(), weight=1.0, n_workers=self.comm.size,
            gradient=self.gradient, loss=None, links=None, rates=None, sampler=SimpleNamespace(shares=None), worker_roles=range(self.comm.size), worker_role=0,
            coordinator=None, settle=nothing, transform=nothing, land=nothing,
        )  # fmt: skip
        stepper = Stepper(strategy, Layers(work, seconds, self.cuts), buckets, Part(), nothing, nothing, 1e9)
        stepper.until = self.steps
        found = self.timed(stepper.run)
        self.comm.Barrier()
        for half in halves:
            half.reduce.free()
            half.gather.free()
        return found

    def peer(self, work: Work, seconds: float) -> float:
        """Time the same by hand: MPI_Iallreduce of each bucket as soon as it is final, and one wait for all at the end."""
        layers, mpi = Layers(work, seconds, self.cuts), self.comm.mpi
        requests: list[Any] = []

        def run() -> None:
            for _ in range(self.steps):
                layers.compute(None, lambda lo, hi: requests.append(mpi.Iallreduce(MPI.IN_PLACE, self.gradient[lo:hi])))
                MPI.Request.Waitall(requests)
                requests.clear()

        return self.timed(run)


def hidden(comm: float, compute: float, both: float) -> float:
    """Return the share of the shorter one that was hidden behind the other."""
    return (comm + compute - both) / min(comm, compute)


def main() -> None:
    """Measure every way in each round: what it takes to sum, to compute, and both; the times to sum are found anew in each."""
    nbytes, n_layers, steps, n_rounds = map(int, sys.argv[1:5])
    factor, names = float(sys.argv[5]), sys.argv[6].split(",")
    comm = CountedComm()
    bench = Bench(comm, nbytes // 4, n_layers, steps)
    sums = {name: make_collective(name, comm) for name in names}
    found: dict[str, list[dict[str, float]]] = {}
    works = {"sleep": sleeping(), "matmul": multiplying(comm)}
    with Watch() as watch:
        for round_ in range(n_rounds + 1):  # the first warms up
            alone = {name: bench.ours(collective, sleeping(), 0.0, ByHand()) for name, collective in sums.items()}
            alone["MPI_Iallreduce"] = bench.peer(sleeping(), 0.0)
            for kind, work in works.items():
                seconds = comm.bcast(factor * max(alone.values()))
                compute = bench.ours(None, work, seconds, ByHand())
                both = {"MPI_Iallreduce": bench.peer(work, seconds)}
                for name, collective in sums.items():
                    both[f"{name}, tests between kernels"] = bench.ours(collective, work, seconds, ByHand())
                    thread = ProgressThread()
                    both[f"{name}, progress thread"] = bench.ours(collective, work, seconds, thread)
                    comm.Barrier()
                    thread.stop()
                for name, taken in both.items():
                    own = alone[name.partition(",")[0]]
                    row = {"comm": own, "compute": compute, "both": taken, "hidden": hidden(own, compute, taken)}
                    found.setdefault(f"{kind}: {name}", []).extend([row] * bool(round_))
    others = watch.others(sum(comm.allgather(watch.cpu_seconds)))
    if comm.rank == 0:
        rows = {
            name: {what: median(row[what] for row in rows) for what in rows[0]} | {"least": min(r["hidden"] for r in rows), "most": max(r["hidden"] for r in rows)}
            for name, rows in found.items()
        }
        print(json.dumps({"rows": rows, "one_host": comm.one_host, "others": others}))
    comm.Barrier()
    for collective in sums.values():
        collective.free()
    comm.free()


if __name__ == "__main__":
    main()
