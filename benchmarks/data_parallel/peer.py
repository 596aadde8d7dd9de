"""What the peers that compute by PyTorch share: the net with its first weights, the loop that is timed, and what rank 0 prints of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.data_parallel.problem import N_COMPARED
from benchmarks.machine import Watch

if TYPE_CHECKING:
    import torch


def network(given: Mapping[str, Any]) -> torch.nn.Sequential:
    """Return the net of the given weights, with weights of its own."""
    import torch

    shapes = [given[f"layers.{i}.weight"].shape for i in range(sum(name.endswith(".weight") for name in given))]
    layers = [layer for shape in shapes for layer in (torch.nn.Linear(*shape), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers[:-1])


def load(net: torch.nn.Sequential, given: Mapping[str, Any]) -> None:
    """Give the net the first weights; its layers 0, 2, ... have some."""
    import torch

    with torch.no_grad():
        for i, layer in enumerate(net[::2]):
            layer.weight.copy_(torch.from_numpy(given[f"layers.{i}.weight"].T.copy()))
            layer.bias.copy_(torch.from_numpy(given[f"layers.{i}.bias"]))


def train(
    given: Mapping[str, Any], steps: int, rank: int, size: int, net: torch.nn.Module, optimizer: Any,
    barrier: Callable[[], object], total: Callable[[Sequence[float]], Sequence[float]],
) -> None:
    """Train on this rank's part of each batch, one thread, and print; `total` sums each of some numbers over the ranks, `net.eval()` ends what is still on its way."""
    import torch

    torch.set_num_threads(1)
    x, y, order = torch.from_numpy(given["x"]), torch.from_numpy(given["y"]), torch.from_numpy(given["order"])
    losses = []
    skipped = min(N_COMPARED, steps - 1)
    watch = Watch().__enter__()
    start = time.perf_counter()
    for step in range(steps):
        if step == skipped:
            barrier()
            watch, start = Watch().__enter__(), time.perf_counter()
        batch = order[step % len(order)]
        own = batch[len(batch) * rank // size : len(batch) * (rank + 1) // size]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x[own]), y[own])
        loss.backward()
        optimizer.step()
        if step < skipped:
            losses.append(loss.item())
    net.eval()
    barrier()
    seconds = time.perf_counter() - start
    watch.__exit__()
    *sums, cpu = total([*losses, watch.cpu_seconds])
    if rank == 0:
        rate = (steps - skipped) * order.shape[1] / seconds
        print(json.dumps({"samples_per_second": rate, "losses": [each / size for each in sums], "others": watch.others(cpu)}), flush=True)
