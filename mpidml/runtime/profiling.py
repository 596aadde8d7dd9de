"""Measure what each layer of a network costs on this machine, one at a time, so that no rank needs room for all of them, and on each rank.

Of layers that are cut into parts all ranks measure the largest part: no rank has room for more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core import rng
from mpidml.core.balance import Profile
from mpidml.core.flat import Array
from mpidml.core.pace import relative
from mpidml.core.slowdown import Slowdown
from mpidml.nn.network import Network
from mpidml.nn.parts import Fullest
from mpidml.nn.split.whole import parts_of
from mpidml.nn.stage import Stage, n_cuts
from mpidml.nn.step import Edges, Memory
from mpidml.runtime.slowness import Slowness

cpu_now, clock_now = time.thread_time, time.perf_counter
REPEATS, MOST_REPEATS, LEAST_SECONDS = 3, 12, 2e-3
"""Passes of each layer: so many, and more of short ones."""
ATTEMPTS = 4
"""How often a rank that seems slow is measured."""
AS_IT_IS = Slowness(None, 0)


class Unsummed(Fullest):
    """The rank of an even line that has most, alone with its parts: what would be summed stays as it is, and no time is measured of it."""

    def sum(self, buffer: Any) -> Callable[[], object]:
        """Return a call that does nothing."""
        return lambda: None

    most = sum


def profiles(net: Network, rows: int, slow: Slowness = AS_IT_IS, n_parts: int = 1) -> list[Profile]:
    """Return of each layer that can be cut off the seconds of forward and backward for so many rows, the least of a few, and its bytes.

    They are seconds of this thread's CPU time: what others take of the core while a layer is measured is no reason to cut elsewhere. On a device, for
    which a thread waits, they are seconds.
    Of layers that are cut into `n_parts` they are those of the largest part, without what it sums.
    What `slow` owes for a compute prolongs it: the sleep itself may be longer, and those after it are then shorter, of another layer.
    What is read is in memory of its own, and tables are looked up anywhere: each pass has other codes, all of which are as frequent.
    """
    draws, parts = rng.stream(0, "profile"), parts_of(net, Unsummed(n_parts)) if n_parts > 1 else None
    stages = (Stage(net, i, i + 1, i == 0, i == n_cuts(net) - 1, parts) for i in range(n_cuts(net)))
    return [_profile(stage, rows, slow, draws) for stage in stages]


def _profile(stage: Stage, rows: int, slow: Slowness, draws: np.random.Generator) -> Profile:
    """Return what a stage of one layer costs, and leave nothing of what it was measured on."""
    dtype, now = stage.dtype, cpu_now if stage.device.kernels is None else clock_now
    out = None if stage.is_last else np.zeros((rows, stage.n_out), dtype)
    dy = None if stage.is_last else written((rows, stage.n_out), dtype)
    dx = None if stage.is_first else np.zeros((rows, stage.n_features), dtype)
    w, g = written(stage.n_params, dtype), np.zeros(stage.n_params, dtype)
    x = written((rows, stage.n_features), dtype)
    step = stage.bind(rows, w, g, Memory(rows, stage.backend), Edges(x, out, dy, dx))
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
    return Profile(forward, backward, rows * stage.n_out * dtype.itemsize, stage.n_params * dtype.itemsize)


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


def of_all(comm: Any, net: Network, rows: int, slowdown: Slowdown | None, n_parts: int = 1) -> tuple[list[Profile], list[float]]:
    """Return what the layers, or their parts, cost the fastest rank, and how fast each rank is with what of `slowdown` lasts for the whole run (Collective on comm).

    All measure at the same time; those that seem slow do so again while the others sleep, since another process may have had their core.
    """
    slow = Slowness(slowdown and slowdown.lasting(), comm.rank)
    own, speeds = profiles(net, rows, slow, n_parts), [0.0] * comm.size
    for attempt in range(ATTEMPTS):
        if attempt and speeds[comm.rank] < 1:
            own = [_least(a, b) for a, b in zip(own, profiles(net, rows, slow, n_parts), strict=True)]
        comm.Barrier()  # whoever is done leaves its core to the others
        every: list[list[Profile]] = comm.allgather(own)
        seconds = [sum(profile.forward_seconds + profile.backward_seconds for profile in of) for of in every]
        speeds = relative(seconds)
        if min(speeds) == 1:
            break
    return every[seconds.index(min(seconds))], speeds


def _least(a: Profile, b: Profile) -> Profile:
    return a._replace(forward_seconds=min(a.forward_seconds, b.forward_seconds), backward_seconds=min(a.backward_seconds, b.backward_seconds))
