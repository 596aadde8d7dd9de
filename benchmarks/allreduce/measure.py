"""Measure sums of float32 buffers on the ranks that `run.py` starts; rank 0 prints the table. Every variant is checked to sum before it is timed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch
from benchmarks.rounds import Rounds, Sample, interleave
from mpidml.collectives.base import make_collective
from mpidml.runtime.comm import CountedComm, world

OURS, HALVES = "shared, in place", "shared, each sums its part (halves)"
BY_ROUNDS = ("rabenseifner", "ring", "recursive_doubling")
BLOCKING, NONBLOCKING, PERSISTENT, GLOO = "MPI blocking", "MPI nonblocking", "MPI persistent", "torch gloo"
TARGETS = {1 << 12: (("best of MPI", 0.9),), 1 << 20: (("best of MPI", 3.0), (GLOO, 5.0)), 1 << 26: (("best of MPI", 2.0), (GLOO, 3.0))}
OPEN_TARGETS = {1 << 12: (("best of MPI", 0.9),), 1 << 20: (("best of MPI", 3.0), (GLOO, 5.0)), 1 << 26: (("best of MPI", 1.0), (GLOO, 3.0))}
SECONDS_A_SAMPLE = 0.02


def variants(comm: CountedComm, n: int, gloo: Any) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Return name -> (buffer to be summed in place, one sum); `auto` stands for what a user gets."""
    mpi = comm.mpi
    found: dict[str, tuple[Any, Callable[[], Any]]] = {}

    def planned(name: str) -> tuple[Any, Callable[[], Any]]:
        collective = make_collective(name, comm)
        buffer = collective.allocate(n, np.float32)
        total = collective.plan(buffer)

        def go() -> None:
            total.start()
            total.wait()

        return buffer, go

    found["auto"] = planned("auto")
    found[OURS] = planned("shared")
    shared = make_collective("shared", comm)
    gradient, weights = shared.allocate(n, np.float32), shared.weights(n, np.float32)
    halves = shared.halves(gradient, weights)

    def by_halves() -> None:
        halves.reduce.start()
        halves.reduce.wait()
        weights[halves.lo : halves.hi] = halves.total
        halves.gather.start()
        halves.gather.wait()

    found[HALVES] = (gradient, by_halves)
    for name in BY_ROUNDS:
        found[name] = planned(name)
    a, b, c = (np.zeros(n, np.float32) for _ in range(3))
    in_place: Any = sys.modules["mpi4py.MPI"].IN_PLACE
    found[BLOCKING] = (a, lambda: mpi.Allreduce(in_place, a))
    found[NONBLOCKING] = (b, lambda: mpi.Iallreduce(in_place, b).Wait())
    request = mpi.Allreduce_init(in_place, c)

    def persistent() -> None:
        request.Start()
        request.Wait()

    found[PERSISTENT] = (c, persistent)
    if gloo is not None:
        import torch

        d = np.zeros(n, np.float32)
        tensor = torch.from_numpy(d)
        found[GLOO] = (d, lambda: gloo.all_reduce(tensor))
    for name, (buffer, go) in found.items():
        buffer[:] = comm.rank + 1
        go()
        result = weights if name == HALVES else buffer
        assert (result == comm.size * (comm.size + 1) / 2).all(), f"{name}: does not sum"
    return found


def sampled(comm: CountedComm, buffer: Any, go: Callable[[], Any]) -> Callable[[], Sample]:
    """Return a measurement: the seconds a sum takes on the slower rank, over as many sums as make some hundredths of a second."""
    n_times = 1

    def measure() -> Sample:
        nonlocal n_times
        buffer[:] = 0  # sums of sums would not stay finite
        comm.Barrier()
        with Watch() as watch:
            start = time.perf_counter()
            for _ in range(n_times):
                go()
            seconds = time.perf_counter() - start
        found = comm.allgather((seconds, watch.cpu_seconds))
        slowest = max(each for each, _ in found) / n_times
        n_times = max(1, min(1000, int(SECONDS_A_SAMPLE / slowest)))
        return Sample(slowest, watch.others(sum(cpu for _, cpu in found)))

    return measure


def start_gloo(comm: CountedComm) -> Any:
    """Return torch.distributed with its gloo group, or None where there is no PyTorch; all ranks find the same."""
    gloo: Any = None
    with suppress(ImportError, OSError):
        gloo = importlib.import_module("torch.distributed")
    if not all(comm.allgather(gloo is not None)):
        return None
    import socket

    port = 0
    if comm.rank == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(comm.bcast(port)), "RANK": str(comm.rank), "WORLD_SIZE": str(comm.size)}
    gloo.init_process_group("gloo")
    return gloo


def show(rounds: Rounds, nbytes: int, targets: dict[int, tuple[tuple[str, float], ...]], smoke: bool) -> None:
    """Print one line a variant, ratios of our sums to the peers within a round, and whether targets are met."""
    peers = [name for name in (BLOCKING, NONBLOCKING, PERSISTENT) if name in rounds.samples]
    best = min(peers, key=rounds.median)
    for name in rounds.samples:
        line = f"  {name:36s} median {rounds.median(name) * 1e6:10.1f} us, least {rounds.least(name) * 1e6:10.1f}"
        print(f"{line}, others {rounds.others(name):.2f} cores, {2 * nbytes / rounds.median(name) / 1e9:7.2f} GB/s")
    for peer, target in () if smoke else targets.get(nbytes, ()):
        against = best if peer == "best of MPI" else peer
        if against not in rounds.samples:
            print(f"left out {peer}: it is not installed (pip install 'mpidml[bench]')")
            continue
        ratio = rounds.ratio(against, "auto")
        print(f"{'met   ' if ratio >= target else 'MISSED'} {nbytes} bytes: {against} takes {ratio:.2f} times as long as auto, target >= {target:g}")


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    comm = CountedComm(world())
    library = sys.modules["mpi4py.MPI"].Get_library_version().split("\n")[0].strip("\x00 ")
    gloo = None if options.smoke else start_gloo(comm)
    if comm.rank == 0:
        print(f"\n{library}, {comm.size} ranks; {options.rounds} rounds", flush=True)
    for nbytes in options.sizes:
        measures = {name: sampled(comm, *each) for name, each in variants(comm, nbytes // 4, gloo).items()}
        interleave(measures, 1 if options.smoke else 3)  # memory is touched, and how many sums a sample has is found
        rounds = interleave(measures, options.rounds)
        if comm.rank == 0:
            print(f"{nbytes} bytes")
            show(rounds, nbytes, OPEN_TARGETS if "Open MPI" in library else TARGETS, options.smoke)
            sys.stdout.flush()
    if gloo is not None:
        gloo.destroy_process_group()


if __name__ == "__main__":
    main()
