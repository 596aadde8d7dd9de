"""Answer "how fast is one training step on one GPU?": `python benchmarks/gpu_step/run.py [--rounds R] [--steps N] [--smoke]`."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import card
from benchmarks.gpu_step import ours, peer_torch
from benchmarks.rounds import Sample, interleave
from benchmarks.training_step.problem import N_COMPARED
from benchmarks.training_step.run import LARGE, SMOKE, check_losses

SMALL: dict[str, Any] = {"sizes": [64, 128, 64, 10], "batch": 64}
LARGER: dict[str, Any] = {"sizes": [1024, 4096, 4096, 4096, 1000], "batch": 1024}
TARGET = 1.0
"""PyTorch's seconds a step over ours."""


def seconds_a_step(make: Callable[[], float], n: int) -> Sample:
    """Return wall seconds a step over n steps, each of which ends with its loss on the host."""
    began = time.perf_counter()
    for _ in range(n):
        make()
    return Sample((time.perf_counter() - began) / n)


def flops(sizes: list[int], batch: int) -> int:
    """Return the operations of a step's products: three a layer, two for the first."""
    pairs = [a * b for a, b in itertools.pairwise(sizes)]
    return 2 * batch * (3 * sum(pairs) - pairs[0])


def measure(net: dict[str, Any], steppers: dict[str, Callable[..., Callable[[], float]]], n_rounds: int, n_steps: int, smoke: bool) -> None:
    """Print one line a side, after its losses were held to ours."""
    losses = {name: [make() for _ in range(N_COMPARED)] for name, stepper in steppers.items() for make in [stepper(**net)]}
    for name in list(steppers)[1:]:
        check_losses(losses["ours"], losses[name], name)
    makers = {name: stepper(**net) for name, stepper in steppers.items()}
    for make in makers.values():
        make()
    print(f"{'-'.join(map(str, net['sizes']))}, batch {net['batch']}: forward, backward, momentum update; {n_rounds} rounds of {n_steps} steps")
    rounds = interleave({name: lambda make=make: seconds_a_step(make, n_steps) for name, make in makers.items()}, n_rounds)
    for name in makers:
        seconds = rounds.median(name)
        text = f"{name:8s}{seconds * 1e6:10.1f} us  {flops(**net) / seconds / 1e12:8.2f} TFLOP/s"
        if name != "ours":
            ratio = rounds.ratio(name, "ours")
            text += f"  x{ratio:.2f} of ours" + ("" if smoke or name == "no graph" else f": {'met' if ratio >= TARGET else f'MISSED, target x{TARGET:g}'}")
        print(text, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50, help="steps in each measurement")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    cupy = card.opened(options.smoke)
    if cupy is None:
        return
    import mpidml_kernels

    kernels = mpidml_kernels.cuda(cupy)
    steppers: dict[str, Callable[..., Callable[[], float]]] = {
        "ours": lambda sizes, batch: ours.stepper(kernels, sizes, batch),
        "no graph": lambda sizes, batch: ours.stepper(kernels, sizes, batch, graphs=False),
    }
    if reason := peer_torch.lacking():
        print(f"torch is left out: {reason}")
    else:
        steppers["torch"] = peer_torch.stepper
    for net in [SMOKE] if options.smoke else [SMALL, LARGE, LARGER]:
        measure(net, steppers, *((1, 1) if options.smoke else (options.rounds, options.steps)), options.smoke)


if __name__ == "__main__":
    main()
