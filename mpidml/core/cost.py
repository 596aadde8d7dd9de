"""Say what a job's parts cost: the seconds of a worker's compute, of a server's update, of a message. Fitted to a short run, or given.

compute   drawn, for each (worker, step), from the seconds that were measured, or from a mean and the share of it that is jitter
apply     a server's update by one pushed gradient, all shards together
message   what a rank spends on each message that it takes besides, a server or a worker; and how long it travels: latency + bytes / bandwidth
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from mpidml.core import rng
from mpidml.core.errors import UserError, nearest

LISTS = ("compute", "slowness")


@dataclass(frozen=True)
class CostModel:
    """Seconds of a job's parts. `compute`: seconds of a worker's compute on its share, measured ones to draw from, or one mean.

    `jitter`: this share of each draw is exponentially distributed; `bytes_per_second` 0: payloads travel in no time (a shared window).
    `slowness`: how many times as long the computes of each worker took that was measured; worker w of a simulation is as slow as the measured worker
    w mod their number, so the share of slow ones stays. Without any all workers are alike.
    """

    compute: tuple[float, ...] = (0.01,)
    jitter: float = 0.0
    latency: float = 50e-6
    bytes_per_second: float = 0.0
    apply: float = 0.0
    message: float = 0.0
    samples: int = 0
    """Samples of a compute, where it was measured; 0: unknown."""
    source: str = field(default="given")
    slowness: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.compute or not all(math.isfinite(s) and s >= 0 for s in self.compute) or not any(self.compute):
            raise UserError("cost model: compute is not a positive number of seconds; give for example 0.01")
        for name in ("latency", "bytes_per_second", "apply", "message"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"cost model: {name} {value} is not a number from 0 up; give one")
        if not all(math.isfinite(times) and times > 0 for times in self.slowness):
            raise UserError("cost model: slowness is not a list of numbers above 0; give one of each measured worker, or [] where all are alike")
        if self.samples < 0:
            raise UserError(f"cost model: samples {self.samples} is below 0; give how many a compute has, or 0 for unknown")
        if not 0 <= self.jitter <= 1:
            raise UserError(f"cost model: jitter {self.jitter} is not a share; give a number from 0 to 1")

    @property
    def mean_seconds(self) -> float:
        """Return the mean of a compute, over all workers that were measured."""
        return self.mean_of(len(self.slowness))

    def mean_of(self, n_workers: int) -> float:
        """Return the mean of a compute of so many simulated workers."""
        alike, n = math.fsum(self.compute) / len(self.compute), len(self.slowness)
        return alike * math.fsum(self.slowness[w % n] for w in range(n_workers)) / n_workers if n else alike

    def slow(self, n_workers: int) -> str:
        """Say in one line which workers were slow throughout when they were measured, and how many of `n_workers` are so; "" where all are alike."""
        n, slow = len(self.slowness), [w for w, times in enumerate(self.slowness[:n_workers]) if times != 1]
        if not slow:
            return ""
        each = ", ".join(f"worker {w} took {self.slowness[w]:.2f} times as long" for w in slow[:5]) + ", ..." * (len(slow) > 5)
        n_slow = sum(self.slowness[w % n] != 1 for w in range(n_workers))
        rule = f"simulated worker w is as slow as measured worker w mod {n}"
        return f"of {n} measured workers, {each} throughout: {rule}, so are {n_slow:,} of {n_workers:,}; for workers that are alike, fit without slow ones"

    def seconds(self, seed: int, n_workers: int) -> ComputeSeconds:
        """Return the seconds of all workers' computes, each a function of (seed, worker, step) alone."""
        return ComputeSeconds(self, seed, n_workers)

    def mapping(self) -> dict[str, Any]:
        """Return all fields as plain values, as cost.json holds them."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> CostModel:
        """Return the model that cost.json holds; UserError names `where` and what is wrong."""
        known = {f.name: f for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(f"{where}: there is no '{name}' in a cost model; {nearest(name, known)}")
        if "compute" not in values:
            raise UserError(f"{where}: there is no compute in this cost model; add a list of seconds, as [0.01]")
        for name in LISTS:
            if not isinstance(values.get(name, ()), list | tuple):
                raise UserError(f"{where}: a cost model holds numbers, and a list of them for {name}, not {values[name]!r}; correct the file")
        kinds: dict[str, Any] = {"source": str, "samples": int} | dict.fromkeys(LISTS, lambda v: tuple(map(float, v)))
        numbers: dict[str, Any] = {}
        for name, value in values.items():
            try:
                numbers[name] = kinds.get(name, float)(value)
            except (TypeError, ValueError, OverflowError):
                raise UserError(f"{where}: a cost model holds numbers, and a list of them for compute; {name} is {value!r}, correct the file") from None
        return cls(**numbers)


STEPS, WORKERS, MOST_BLOCKS = 32, 64, 4


class ComputeSeconds:
    """The seconds of workers' computes, in any order, mostly upwards; drawn in blocks of 32 steps of 64 workers, so that a call costs little.

    What workers ask for at about the same time, their seconds of one step, lies side by side. Memory: up to 4 blocks of 16 KiB for 64 workers, the last ones drawn.
    """

    __slots__ = ("blocks", "cost", "seed")

    def __init__(self, cost: CostModel, seed: int, n_workers: int) -> None:
        self.cost, self.seed = cost, seed
        self.blocks: list[dict[int, array[float]]] = [{} for _ in range(-(-n_workers // WORKERS))]

    def of(self, worker: int, step: int) -> float:
        """Return the seconds of a step of a worker."""
        block = self.blocks[worker // WORKERS].get(step // STEPS)
        if block is None:
            block = self._draw(worker // WORKERS, step // STEPS)
        return block[step % STEPS * WORKERS + worker % WORKERS]

    def _draw(self, group: int, number: int) -> array[float]:
        cost, stream = self.cost, rng.stream(self.seed, "compute", group, number)
        drawn = stream.choice(cost.compute, STEPS * WORKERS) if len(cost.compute) > 1 else np.full(STEPS * WORKERS, cost.compute[0])
        if cost.jitter:
            drawn = drawn * (1 - cost.jitter + cost.jitter * stream.exponential(1.0, STEPS * WORKERS))
        if cost.slowness:
            drawn = drawn * np.tile(np.take(cost.slowness, range(group * WORKERS, (group + 1) * WORKERS), mode="wrap"), STEPS)
        blocks = self.blocks[group]
        if len(blocks) == MOST_BLOCKS:
            del blocks[next(iter(blocks))]
        found = blocks[number] = array("d", drawn.tobytes())
        return found
