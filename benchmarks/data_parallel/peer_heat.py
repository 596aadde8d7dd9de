"""Train the problem with Heat's DataParallel over MPI: `mpirun -n 2 python peer_heat.py FILE STEPS`, by a python that has heat; rank 0 prints one JSON line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.peer import load, network, train
from benchmarks.data_parallel.problem import DECAY, RATE


def main() -> None:
    """Train; the sum of a layer's gradient is waited for when the next forward pass comes to the layer, as Heat does by default."""
    import heat
    import torch

    given, steps = np.load(sys.argv[1]), int(sys.argv[2])
    comm = heat.MPI_WORLD
    bare = network(given)
    optimizer = heat.optim.DataParallelOptimizer(torch.optim.SGD(bare.parameters(), lr=RATE, momentum=DECAY, foreach=True))
    net = heat.nn.DataParallel(bare, comm, optimizer)  # which draws weights of its own
    load(bare, given)

    def total(values: Sequence[float]) -> Sequence[float]:
        return list(np.sum(comm.handle.allgather(list(values)), axis=0).tolist())

    train(given, steps, comm.rank, comm.size, net, optimizer, comm.handle.Barrier, total)


if __name__ == "__main__":
    main()
