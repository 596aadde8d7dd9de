"""Train the problem with torch.distributed.pipelining over gloo: `mpirun -n N python peer_torch.py FILE STEPS MICROBATCHES`; rank 0 prints one JSON line.

On one rank it is a plain loop, of one microbatch or several.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import RATE
from benchmarks.machine import Watch
from benchmarks.pipeline.problem import N_COMPARED, widths
from mpidml.runtime.launch import world_from_environment


def main() -> None:
    """Train by Schedule1F1B, the layers cut in two halves; SGD without momentum, all tensors at once."""
    import torch
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(1)
    given, steps, n_items = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    of = world_from_environment(os.environ)
    rank, size = of.rank, of.size or 1
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}.group", rank=rank, world_size=size)
    n_layers = len(widths(given)) - 1
    layers: list[torch.nn.Module] = []
    for i in range(n_layers * rank // size, n_layers * (rank + 1) // size):
        weight = given[f"layers.{i}.weight"]
        linear = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T.copy()))
            linear.bias.copy_(torch.from_numpy(given[f"layers.{i}.bias"]))
        layers += [linear, *([torch.nn.ReLU()] if i < n_layers - 1 else [])]
    net = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, foreach=True)
    x, y, order = torch.from_numpy(given["x"]), torch.from_numpy(given["y"]), torch.from_numpy(given["order"])
    schedule = Schedule1F1B(PipelineStage(net, rank, size, torch.device("cpu")), n_items, cross_entropy) if size > 1 else None
    losses: list[float] = []

    def step(batch: Any) -> float:
        optimizer.zero_grad(set_to_none=True)
        parts: list[Any] = []
        if schedule is None:
            for rows in batch.chunk(n_items):
                parts.append(cross_entropy(net(x[rows]), y[rows]))
                (parts[-1] / n_items).backward()
        elif rank == 0:
            schedule.step(x[batch])
        elif rank == size - 1:
            schedule.step(target=y[batch], losses=parts, return_outputs=False)
        else:
            schedule.step()
        optimizer.step()
        return float(sum(part.item() for part in parts)) / n_items

    skipped = min(N_COMPARED, steps - 1)
    for k in range(skipped):
        losses.append(step(order[k % len(order)]))
    torch.distributed.barrier()
    with Watch() as watch:
        start = time.perf_counter()
        for k in range(skipped, steps):
            step(order[k % len(order)])
        torch.distributed.barrier()
        seconds = time.perf_counter() - start
    mean, cpu, busiest = torch.tensor(losses), torch.tensor([watch.cpu_seconds]), torch.tensor([watch.cpu_seconds])
    torch.distributed.all_reduce(busiest, torch.distributed.ReduceOp.MAX)
    torch.distributed.all_reduce(mean)
    torch.distributed.all_reduce(cpu)
    if rank == 0:
        rate = (steps - skipped) * order.shape[1] / seconds
        told = {"samples_per_second": rate, "losses": mean.tolist(), "others": watch.others(cpu.item())}
        print(json.dumps(told | {"cpu": busiest.item() / (steps - skipped) / order.shape[1]}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
