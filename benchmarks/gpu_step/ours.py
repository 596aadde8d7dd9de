"""Train the problem of the training step on a GPU by this project's kernels: forward, backward and momentum update on arrays that stay there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.training_step.problem import DECAY, RATE, problem


def stepper(kernels: Any, sizes: Sequence[int], batch: int) -> Callable[[], float]:
    """Return a function that makes one step from the problem's weights on, and returns the mean loss: it waits for the device once.

    As on the CPU, weights, gradient and velocity are a flat vector each, in which every layer has its weight (n_in, n_out) and then its bias.
    """
    cupy, given = kernels.gpu.cupy, problem(sizes, batch)
    edges = [0, *itertools.accumulate((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(sizes))]
    flat = np.concatenate([part.reshape(-1) for pair in zip(given.weights, given.biases, strict=True) for part in pair])
    w, g, v = cupy.asarray(flat), cupy.zeros(flat.size, "f4"), cupy.zeros(flat.size, "f4")

    def layers(of: Any) -> list[tuple[Any, Any]]:
        pairs = zip(edges[:-1], edges[1:], itertools.pairwise(sizes), strict=True)
        return [(of[lo : hi - n_out].reshape((n_in, n_out)), of[hi - n_out : hi]) for lo, hi, (n_in, n_out) in pairs]

    weights, gradients, last = layers(w), layers(g), len(sizes) - 2
    outputs = [cupy.asarray(given.x), *(cupy.empty((batch, n), "f4") for n in sizes[1:])]
    inner = [None, *(cupy.empty((batch, n), "f4") for n in sizes[1:-1])]  # gradients of what inner layers give
    y = cupy.asarray(given.y)

    def make() -> float:
        for i, (weight, bias) in enumerate(weights):
            kernels.matmul(outputs[i], weight, outputs[i + 1])
            (kernels.bias_linear if i == last else kernels.bias_relu)(outputs[i + 1], bias)
        d = outputs[-1]
        loss = kernels.softmax_xent(d, y, 1.0 / batch) / batch  # what the net gives is now its gradient
        for i in range(last, -1, -1):
            (kernels.linear_backward if i == last else kernels.relu_backward)(d, outputs[i + 1], gradients[i][1])
            kernels.matmul(outputs[i].T, d, gradients[i][0])
            if i:
                kernels.matmul(d, weights[i][0].T, inner[i])
                d = inner[i]
        kernels.momentum_in_place(w, v, g, RATE, DECAY)
        return loss

    return make
