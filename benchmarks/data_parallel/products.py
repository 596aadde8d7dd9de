"""Make nothing but the matrix products of a step: `mpirun -n N python products.py FILE STEPS`; rank 0 prints one JSON line. No job with these kernels can be faster."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from mpidml_kernels import backend

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import N_COMPARED
from benchmarks.machine import Watch
from mpidml.core.flat import Array
from mpidml.runtime.comm import CountedComm, world


def main() -> None:
    """Multiply: of each layer forward, for its weights, and but for the first for its input."""
    given, steps = np.load(sys.argv[1]), int(sys.argv[2])
    comm = CountedComm(world())
    m = given["order"].shape[1] // comm.size
    rng = np.random.default_rng(comm.rank)
    kernels, products = backend("numba"), []

    def filled(values: Array) -> Array:
        found: Array = kernels.zeros(values.shape, np.float32)
        found[...] = values
        return found

    for i in range(sum(name.endswith(".weight") for name in given)):
        w = filled(given[f"layers.{i}.weight"])
        x, dy = (filled(rng.standard_normal((m, n), np.float32)) for n in w.shape)
        products += [(x, w, filled(dy)), (x.T, dy, filled(w))] + ([(dy, w.T, filled(x))] if i else [])
    since = 0.0
    with Watch() as watch:
        for step in range(steps):
            if step == min(N_COMPARED, steps - 1):
                comm.Barrier()
                since = time.perf_counter()
            for a, b, out in products:
                kernels.matmul(a, b, out)
        seconds = time.perf_counter() - since
    found = comm.allgather((seconds, watch.cpu_seconds))
    if comm.rank == 0:
        rate = (steps - min(N_COMPARED, steps - 1)) * m * comm.size / max(each for each, _ in found)
        print(json.dumps({"samples_per_second": rate, "losses": [], "others": watch.others(sum(cpu for _, cpu in found))}))


if __name__ == "__main__":
    main()
