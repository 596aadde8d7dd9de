"""Train the problem with PyTorch's DistributedDataParallel over gloo: `mpirun -n 2 python peer_ddp.py FILE STEPS`; rank 0 prints one JSON line."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import DECAY, N_COMPARED, RATE
from benchmarks.machine import Watch
from mpidml.runtime.launch import world_from_environment


def main() -> None:
    """Train; the gradients of the first bucket travel while the rest is computed, as DDP does by default."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    given, steps = np.load(sys.argv[1]), int(sys.argv[2])
    of = world_from_environment(os.environ)
    rank, size = of.rank, of.size
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}.group", rank=rank, world_size=size)
    layers: list[torch.nn.Module] = []
    i = 0
    while f"layers.{i}.weight" in given:
        weight, bias = given[f"layers.{i}.weight"], given[f"layers.{i}.bias"]
        linear = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T.copy()))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, torch.nn.ReLU()]
        i += 1
    net = DistributedDataParallel(torch.nn.Sequential(*layers[:-1]))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=DECAY, foreach=True)
    x, y, order = torch.from_numpy(given["x"]), torch.from_numpy(given["y"]), torch.from_numpy(given["order"])
    losses = []
    skipped = min(N_COMPARED, steps - 1)
    watch = Watch().__enter__()
    start = time.perf_counter()
    for step in range(steps):
        if step == skipped:
            torch.distributed.barrier()
            watch, start = Watch().__enter__(), time.perf_counter()
        batch = order[step % len(order)]
        own = batch[len(batch) * rank // size : len(batch) * (rank + 1) // size]
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(net(x[own]), y[own])
        loss.backward()
        optimizer.step()
        if step < skipped:
            losses.append(loss.item())
    torch.distributed.barrier()
    seconds = time.perf_counter() - start
    watch.__exit__()
    mean = torch.tensor(losses)
    torch.distributed.all_reduce(mean)
    cpu = torch.tensor([watch.cpu_seconds])
    torch.distributed.all_reduce(cpu)
    if rank == 0:
        rate = (steps - skipped) * order.shape[1] / seconds
        print(json.dumps({"samples_per_second": rate, "losses": (mean / size).tolist(), "others": watch.others(cpu.item())}), flush=True)
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads sometimes end a process by std::terminate when its group is taken apart


if __name__ == "__main__":
    main()
