"""Train the same problem by PyTorch on the same GPU, eager, with its fused update; float32 products, not TF32, on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.training_step.problem import DECAY, RATE, problem


def lacking() -> str:
    """Return why PyTorch cannot take part, "" where it can."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"no PyTorch: {error}"
    return "" if torch.cuda.is_available() else f"PyTorch {torch.__version__} finds no GPU"


def stepper(sizes: Sequence[int], batch: int, device: str = "cuda") -> Callable[[], float]:
    """Return a function that makes one step from the problem's weights on, and returns the mean loss: it waits for the device once."""
    import torch

    given = problem(sizes, batch)
    torch.backends.cuda.matmul.allow_tf32 = False
    layers: list[Any] = []
    for weight, bias in zip(given.weights, given.biases, strict=True):
        linear = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1]).to(device)
    x, y = torch.from_numpy(given.x).to(device), torch.from_numpy(given.y).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=DECAY, fused=True)

    def make() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return make
