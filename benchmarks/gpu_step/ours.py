"""Train the problem of the training step on a GPU by this project's networks: forward, backward and momentum update on weights that stay there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.training_step.problem import DECAY, RATE, problem
from mpidml.core.device import Device
from mpidml.nn.models import build


def stepper(kernels: Any, sizes: Sequence[int], batch: int, graphs: bool = True) -> Callable[[], float]:
    """Return a function that makes one step from the problem's weights on, and returns the mean loss: it waits for the device once.

    As in training, the rows go to the device at each step, and so do the labels; a pass whose products are small is a graph, or not without `graphs`.
    """
    given = problem(sizes, batch)
    net = build("mlp", sizes[0], sizes[-1], sizes[1:-1])
    net.device = Device("cuda", "for the benchmark", kernels)
    flat = np.zeros(net.n_params, np.float32)
    for i, (weight, bias) in enumerate(zip(given.weights, given.biases, strict=True)):
        net.params.view(flat, f"layers.{i}.weight")[:] = weight
        net.params.view(flat, f"layers.{i}.bias")[:] = bias
    w, g, v = kernels.here(flat), kernels.zeros(flat.size, "f4"), kernels.zeros(flat.size, "f4")
    step = net.bind(batch, w, g)
    step.x[:], step.y[:] = given.x, given.y

    def make() -> float:
        kernels.gpu.records = graphs
        loss = step.run(1.0 / batch) / batch
        kernels.momentum_in_place(w, v, g, RATE, DECAY)
        return loss

    return make
