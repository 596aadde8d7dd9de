"""Measure what each layer of a network costs on this machine, one at a time, so that no rank needs room for all of them, and on each rank."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core import rng
from mpidml.core.balance import Profile
from mpidml.core.flat import Array
from mpidml.core.pace import relative
from mpidml.core.slowdown import Slowdown
from mpidml.nn.network import Network
from mpidml.nn.stage import Stage, n_cuts
from mpidml.nn.step import Edges, Memory
from mpidml.runtime.slowness import Slowness

cpu_now, clock_now = time.thread_time, time.perf_counter
REPEATS, MOST_REPEATS, LEAST_SECONDS = 3, 12, 2e-3
"""Passes of each layer: so many, and more of short ones."""
ATTEMPTS = 4
"""How often a rank that seems slow is measured."""
AS_IT_IS = Slowness(None, 0)


def profiles(net: Network, rows: int, slow: Slowness = AS_IT_IS) -> list[Profile]:
    """Return of each layer that can be cut off the seconds of forward and backward for so many rows, the least of a few, and its bytes.

    They are seconds of this thread's CPU time: what others take of the core while a layer is measured is no reason to cut elsewhere. On a device, for
    which a thread waits, they are seconds.
    What `slow` owes for a compute prolongs it: the sleep itself may be longer, and those after it are then shorter, of another layer.
    What is read is in memory of its own, and tables are looked up anywhere: each pass has other codes, all of which are as frequent.
    """
    found, itemsize, draws = [], net.dtype.itemsize, rng.stream(0, "profile")
    now = cpu_now if net.device.kernels is None else clock_now
    for i in range(n := n_cuts(net)):
        stage = Stage(net, i, i + 1, i == 0, i == n - 1)
        out = None if stage.is_last else np.zeros((rows, stage.n_out), net.dtype)
        dy = None if stage.is_last else written((rows, stage.n_out), net.dtype)
        dx = None if stage.is_first else np.zeros((rows, stage.n_features), net.dtype)
        w, g = written(stage.n_params, net.dtype), np.zeros(stage.n_params, net.dtype)
        x = written((rows, stage.n_features), net.dtype)
        step = stage.bind(rows, w, g, Memory(rows, net.backend), Edges(x, out, dy, dx))
        least, computed, slept, repeat, first = [np.inf, np.inf], [0.0, 0.0], [0.0, 0.0], 0, clock_now()
        while repeat < REPEATS or (repeat < MOST_REPEATS and clock_now() - first < LEAST_SECONDS):
            for column, n_codes in zip(stage.layers[0].categories(), getattr(stage.layers[0], "n_rows", ()), strict=False):
                step.x[:, column] = draws.integers(n_codes, size=rows)
            for way in range(2):
                slow.begin(repeat)
                owed, began, on_cpu = slow.owed_seconds, clock_now(), now()
                step.go_back() if way else step.go()
                if not way and stage.is_last:
                    step.lose(1.0)
                ended, least[way] = clock_now(), min(least[way], now() - on_cpu)
                slow.end()
                computed[way] += ended - began
                slept[way] += clock_now() - ended + slow.owed_seconds - owed
            repeat += 1
        forward, backward = (of * (1 + sleep / seconds) for of, sleep, seconds in zip(least, slept, computed, strict=True))
        found.append(Profile(forward, backward, rows * stage.n_out * itemsize, stage.n_params * itemsize))
    return found


def written(shape: int | tuple[int, int], dtype: DTypeLike) -> Array:
    """Return zeros that have been written: those that were not are one page of memory, over and over, which is always in the cache."""
    found: Array = np.empty(shape, dtype)
    found.fill(0)
    return found


def counted(net: Network, rows: int) -> list[Profile]:
    """Return the same by counts of operations in place of seconds, a third of them forward: alike on every machine and in every run."""
    found, itemsize = [], net.dtype.itemsize
    for i in range(n := n_cuts(net)):
        stage = Stage(net, i, i + 1, i == 0, i == n - 1)
        flops = sum(layer.flops(rows, wants_dx=i > 0) for layer in stage.layers)
        found.append(Profile(flops / 3, flops * 2 / 3, rows * stage.n_out * itemsize, stage.n_params * itemsize))
    return found


def of_all(comm: Any, net: Network, rows: int, slowdown: Slowdown | None) -> tuple[list[Profile], list[float]]:
    """Return what the layers cost the fastest rank, and how fast each rank is with what of `slowdown` lasts for the whole run (Collective on comm).

    All measure at the same time; those that seem slow do so again while the others sleep, since another process may have had their core.
    """
    slow = Slowness(slowdown and slowdown.lasting(), comm.rank)
    own, speeds = profiles(net, rows, slow), [0.0] * comm.size
    for attempt in range(ATTEMPTS):
        if attempt and speeds[comm.rank] < 1:
            own = [_least(a, b) for a, b in zip(own, profiles(net, rows, slow), strict=True)]
        comm.Barrier()  # whoever is done leaves its core to the others
        every: list[list[Profile]] = comm.allgather(own)
        seconds = [sum(profile.forward_seconds + profile.backward_seconds for profile in of) for of in every]
        speeds = relative(seconds)
        if min(speeds) == 1:
            break
    return every[seconds.index(min(seconds))], speeds


def _least(a: Profile, b: Profile) -> Profile:
    return a._replace(forward_seconds=min(a.forward_seconds, b.forward_seconds), backward_seconds=min(a.backward_seconds, b.backward_seconds))
