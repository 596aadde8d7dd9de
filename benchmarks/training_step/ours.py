"""Train the problem with this project's kernels: one process that answers questions (see `rounds.Child`).

    {"ask": "losses", "sizes": [...], "batch": m}             the losses of the first steps
    {"ask": "step", "sizes": [...], "batch": m, "n": n}       seconds a step, over n steps
    {"ask": "clock", "n": n}                                  seconds a clock of the 4-4-4-2 net through roles and driver, over n clocks
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch
from benchmarks.rounds import serve
from benchmarks.training_step.problem import DECAY, N_COMPARED, RATE, problem
from mpidml.nn.models import build

N_SKIPPED = 50  # clocks in which buffers are first touched


@functools.cache
def stepper(sizes: tuple[int, ...], batch: int) -> Callable[[], float]:
    """Return a function that makes one step - forward, backward, update - from the problem's weights on, and returns the mean loss."""
    given = problem(sizes, batch)
    net = build("mlp", sizes[0], sizes[-1], sizes[1:-1])
    w, g, v = (np.zeros(net.n_params, np.float32) for _ in range(3))
    for i, (weight, bias) in enumerate(zip(given.weights, given.biases, strict=True)):
        net.params.view(w, f"layers.{i}.weight")[:] = weight
        net.params.view(w, f"layers.{i}.bias")[:] = bias
    step = net.bind(batch, w, g)
    step.x[:], step.y[:] = given.x, given.y
    run, update, scale = step.run, net.backend.momentum_in_place, 1.0 / batch

    def make() -> float:
        loss = run(scale)
        update(w, v, g, RATE, DECAY)
        return loss * scale

    return make


def seconds_a_clock(n: int) -> dict[str, float]:
    """Return wall and CPU seconds a clock, and what others took, of n clocks of the tiny net: server and worker on this one rank, trace off."""
    from mpidml.core.job import Job
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.dataset import load
    from mpidml.strategies.parameter_server import ParameterServer

    with tempfile.TemporaryDirectory() as folder:
        given = problem((4, 4, 4, 2), 4096)
        np.savez(Path(folder, "data.npz"), x=given.x, y=given.y)
        job = Job(data=str(Path(folder, "data.npz")), hold_out=0.0, scale="none", hidden=(4, 4), batch=1, steps=n + N_SKIPPED, lr=RATE).checked()
        comm = CountedComm()
        data = load(job, comm)
    strategy = ParameterServer(job, comm)
    ends: list[tuple[float, float]] = []

    def record(role: int, now: float, name: str, value: tuple[float, ...]) -> None:
        if name == "clock":
            ends.append((now, time.process_time() if value[0] in (N_SKIPPED - 1, job.steps - 1) else 0.0))

    strategy.prepare(build("mlp", 4, 2, (4, 4)), data, record, lambda now: None, None)
    strategy.driver.roles = strategy.roles()
    with Watch() as watch:
        strategy.driver.run()
    strategy.free()
    comm.free()
    wall, cpu = ((b - a) / n for a, b in zip(ends[N_SKIPPED - 1], ends[-1], strict=True))
    return {"seconds": wall, "cpu": cpu, "others": watch.others()}


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Answer one question."""
    if question["ask"] == "clock":
        return seconds_a_clock(question["n"])
    sizes, batch = tuple(question["sizes"]), question["batch"]
    if question["ask"] == "losses":
        make = stepper(sizes, batch)
        return {"losses": [make() for _ in range(N_COMPARED)]}
    make, n = stepper(sizes, batch), question["n"]
    with Watch() as watch:
        start = time.perf_counter()
        for _ in range(n):
            make()
        seconds = time.perf_counter() - start
    return {"seconds": seconds / n, "others": watch.others(), "cpu": watch.cpu_seconds / n}


if __name__ == "__main__":
    serve(answer)
