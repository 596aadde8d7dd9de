"""Measure what each layer of a network costs on this machine, one at a time, so that no rank needs room for all of them."""

from __future__ import annotations

import time

import numpy as np

from mpidml.core.balance import Profile
from mpidml.nn.network import Network
from mpidml.nn.stage import Stage, n_cuts
from mpidml.nn.step import Edges, Memory

REPEATS = 3


def profiles(net: Network, rows: int) -> list[Profile]:
    """Return of each layer that can be cut off the seconds of forward and backward for so many rows, the least of three, and its bytes.

    They are seconds of this thread's CPU time: what others take of the core while a layer is measured is no reason to cut elsewhere.
    """
    found, itemsize = [], net.dtype.itemsize
    for i in range(n := n_cuts(net)):
        stage = Stage(net, i, i + 1, i == 0, i == n - 1)
        dy = None if stage.is_last else np.zeros((rows, stage.n_out), net.dtype)
        dx = None if stage.is_first else np.zeros((rows, stage.n_features), net.dtype)
        w, g = np.zeros(stage.n_params, net.dtype), np.zeros(stage.n_params, net.dtype)
        step = stage.bind(rows, w, g, Memory(rows), Edges(dy=dy, dx=dx))
        forward, backward = np.inf, np.inf
        for _ in range(REPEATS):
            began = time.thread_time()
            step.go()
            if stage.is_last:
                step.lose(1.0)
            between = time.thread_time()
            step.go_back()
            forward, backward = min(forward, between - began), min(backward, time.thread_time() - between)
        found.append(Profile(forward, backward, rows * stage.n_out * itemsize, stage.n_params * itemsize))
    return found


def counted(net: Network, rows: int) -> list[Profile]:
    """Return the same by counts of operations in place of seconds, a third of them forward: alike on every machine and in every run."""
    found, itemsize = [], net.dtype.itemsize
    for i in range(n := n_cuts(net)):
        stage = Stage(net, i, i + 1, i == 0, i == n - 1)
        flops = sum(layer.flops(rows, wants_dx=i > 0) for layer in stage.layers)
        found.append(Profile(flops / 3, flops * 2 / 3, rows * stage.n_out * itemsize, stage.n_params * itemsize))
    return found
