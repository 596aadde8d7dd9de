"""Train the problem with PyTorch, eager, on one thread: the same questions as `ours.py`, with the update by "foreach" or "fused".

Eager because that is how a step of this size is usually written; `torch.compile` needs a C++ compiler on the machine.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch
from benchmarks.rounds import serve
from benchmarks.training_step.problem import DECAY, N_COMPARED, RATE, problem


@functools.cache
def stepper(sizes: tuple[int, ...], batch: int, update: str) -> Callable[[], Any]:
    """Return a function that makes one step from the problem's weights on and returns the mean loss, still a tensor."""
    import torch

    given = problem(sizes, batch)
    layers: list[Any] = []
    for weight, bias in zip(given.weights, given.biases, strict=True):
        linear = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    x, y = torch.from_numpy(given.x), torch.from_numpy(given.y)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=DECAY, **{update: True})
    loss_of = torch.nn.functional.cross_entropy

    def make() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return make


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Answer one question; "what" says whether PyTorch is there."""
    if question["ask"] == "what":
        try:
            import torch
        except (ImportError, OSError) as problem_found:
            return {"missing": str(problem_found)}
        torch.set_num_threads(1)
        return {"version": torch.__version__, "threads": torch.get_num_threads(), "mkl": torch.backends.mkl.is_available()}
    make, n = stepper(tuple(question["sizes"]), question["batch"], question["update"]), question.get("n", 0)
    if question["ask"] == "losses":
        return {"losses": [make().detach().item() for _ in range(N_COMPARED)]}
    with Watch() as watch:
        start = time.perf_counter()
        for _ in range(n):
            make()
        seconds = time.perf_counter() - start
    return {"seconds": seconds / n, "others": watch.others(), "cpu": watch.cpu_seconds / n}


if __name__ == "__main__":
    serve(answer)
