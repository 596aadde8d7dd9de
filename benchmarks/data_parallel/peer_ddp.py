"""Train the problem with PyTorch's DistributedDataParallel over gloo: `mpirun -n 2 python peer_ddp.py FILE STEPS`; rank 0 prints one JSON line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.peer import load, network, train
from benchmarks.data_parallel.problem import DECAY, RATE
from mpidml.runtime.launch import world_from_environment


def main() -> None:
    """Train; the gradients of the first bucket travel while the rest is computed, as DDP does by default."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    given, steps = np.load(sys.argv[1]), int(sys.argv[2])
    of = world_from_environment(os.environ)
    rank, size = of.rank, of.size or 1
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}.group", rank=rank, world_size=size)
    bare = network(given)
    load(bare, given)
    net = DistributedDataParallel(bare)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=DECAY, foreach=True)

    def total(values: Sequence[float]) -> Sequence[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(summed)
        return list(summed.tolist())

    train(given, steps, rank, size, net, optimizer, torch.distributed.barrier, total)
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads sometimes end a process by std::terminate when its group is taken apart


if __name__ == "__main__":
    main()
