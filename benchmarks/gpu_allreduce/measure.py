"""Measure sums of float32 buffers on a GPU on the ranks that `run.py` starts; rank 0 prints. Every variant is checked to sum before it is timed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.rounds import Rounds, Sample, interleave
from mpidml.collectives.base import make_collective
from mpidml.runtime.comm import CountedComm, world
from mpidml.runtime.device import lacks_nccl
from mpidml.runtime.device_sum import DirectSums, StagedSums
from mpidml.runtime.gpu_mpi import takes_device_pointers
from mpidml.runtime.nccl_sum import NcclSums

COPIES, STAGED, DIRECT, NCCL = "copies alone, down and up", "staged, auto", "direct, rabenseifner", "nccl (experimental)"
TARGET = 0.8
"""What the copies alone take over what the staged sum takes, from 64 MB up."""
TARGET_NBYTES = 1 << 26


def variants(comm: CountedComm, kernels: Any, n: int, takes_pointers: bool, has_nccl: bool, held: ExitStack) -> dict[str, Callable[[], None]]:
    """Return name -> one sum of n elements in place on the device, after which the device has nothing left to do; the copies alone sum nothing.

    When `held` is left, all that they hold is let go.
    """
    stream = kernels.gpu.cupy.cuda.get_current_stream()
    found: dict[str, Callable[[], None]] = {}
    sums: dict[str, Any] = {STAGED: StagedSums(make_collective("auto", comm), kernels)}
    if takes_pointers:
        sums[DIRECT] = DirectSums(make_collective("rabenseifner", comm), kernels)
    if has_nccl:
        sums[NCCL] = NcclSums(comm, kernels, lambda leaders: StagedSums(make_collective("rabenseifner", leaders), kernels))
    for name, of in sums.items():
        buffer = of.allocate(n, np.float32)
        total = of.plan(buffer)
        held.callback(of.free)
        held.callback(total.free)

        def go(total: Any = total) -> None:
            total.start()
            total.wait()
            stream.synchronize()

        buffer.fill(comm.rank + 1)
        go()
        assert (buffer.get() == comm.size * (comm.size + 1) / 2).all(), f"{name}: does not sum"
        buffer.fill(0)  # sums of sums would not stay finite
        found[name] = go
    there, host = kernels.gpu.cupy.zeros(n, np.float32), kernels.gpu.pinned(n, np.float32)

    def copies() -> None:
        there.get(stream=stream, out=host, blocking=False)
        there.set(host, stream=stream)
        stream.synchronize()

    return {COPIES: copies, **found}


def sampled(comm: CountedComm, go: Callable[[], None]) -> Callable[[], Sample]:
    """Return a measurement: the seconds of one call on the slower rank."""

    def measure() -> Sample:
        comm.Barrier()
        began = time.perf_counter()
        go()
        return Sample(max(comm.allgather(time.perf_counter() - began)))

    return measure


def told(rounds: Rounds, nbytes: int, smoke: bool) -> list[str]:
    """Return a line for each variant: its median, and of the sums what the copies alone take of it."""
    lines = []
    for name in rounds.samples:
        text = f"{nbytes:>10} bytes  {name:<28}{rounds.median(name) * 1e6:12.1f} us"
        if name != COPIES:
            ratio = rounds.ratio(COPIES, name)
            text += f"  copies take x{ratio:.2f} of it"
            if name == STAGED and nbytes >= TARGET_NBYTES and not smoke:
                text += f": {'met' if ratio >= TARGET else f'MISSED, target x{TARGET:g}'}"
        lines.append(text)
    return lines


def main() -> None:
    """Measure, each rank on the next GPU, which it shares where there are fewer than ranks."""
    import cupy
    import mpidml_kernels

    from benchmarks import card

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[TARGET_NBYTES])
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    comm = CountedComm(world())
    number = comm.rank % cupy.cuda.runtime.getDeviceCount()
    cupy.cuda.Device(number).use()
    takes_pointers, reason = takes_device_pointers(comm, number)
    lacking = lacks_nccl(cupy, comm)[0]
    if comm.rank == 0:
        print("\n".join(f"{name:<10}{value}" for name, value in card.facts(cupy).items()))
        print(f"direct    {'yes' if takes_pointers else 'no'}: {reason}")
        print(f"nccl      {f'left out: {lacking}' if lacking else 'yes, each rank on a GPU of its own'}", flush=True)
    kernels = mpidml_kernels.cuda(cupy)
    for nbytes in options.sizes:
        with ExitStack() as held:
            found = variants(comm, kernels, nbytes // 4, takes_pointers, not lacking, held)
            rounds = interleave({name: sampled(comm, go) for name, go in found.items()}, options.rounds)
        if comm.rank == 0:
            print("\n".join(told(rounds, nbytes, options.smoke)), flush=True)
    comm.free()


if __name__ == "__main__":
    main()
