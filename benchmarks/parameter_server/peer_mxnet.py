"""Measure the same network in MXNet: two workers, one server and the scheduler of its KVStore "dist_sync", against one worker without it.

`PYTHON peer_mxnet.py [--rounds R] [--clocks C]`, where PYTHON has mxnet 1.9.1 and numpy 1.23.5. Batch and weights are those of `training_step`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.training_step.problem import DECAY, N_COMPARED, RATE, problem

SIZES, SHARE, N_WORKERS = (784, 512, 512, 10), 128, 2


def work(n_rounds: int, n_clocks: int) -> None:
    """Be one worker; worker 0 prints a JSON line: losses of the first steps alone, then seconds a step alone and with KVStore, by round."""
    import mxnet as mx
    from mxnet import autograd, gluon

    store = mx.kv.create("dist_sync")
    leads = store.rank == 0
    given = problem(SIZES, SHARE, seed=0)
    own = problem(SIZES, SHARE, seed=store.rank)
    x, y = mx.nd.array(own.x), mx.nd.array(own.y)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()

    def make(kvstore: object, batch: int) -> object:
        net = gluon.nn.HybridSequential()
        for i, (n_in, n_out) in enumerate(zip(SIZES, SIZES[1:])):  # noqa: B905, RUF007
            net.add(gluon.nn.Dense(n_out, activation="relu" if i < len(SIZES) - 2 else None, in_units=n_in))
        net.initialize()
        for layer, weight, bias in zip(net, given.weights, given.biases):  # noqa: B905
            layer.weight.set_data(mx.nd.array(weight.T))
            layer.bias.set_data(mx.nd.array(bias))
        net.hybridize(static_alloc=True, static_shape=True)
        trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": RATE, "momentum": DECAY}, kvstore=kvstore)

        def step() -> object:
            with autograd.record():
                loss = loss_of(net(x), y)
            loss.backward()
            trainer.step(batch)
            return loss

        return step

    alone, together = make(None, SHARE), make(store, SHARE * N_WORKERS)
    losses = [float(alone().mean().asscalar()) for _ in range(N_COMPARED)]  # type: ignore[operator]
    for _ in range(N_COMPARED):
        together()  # type: ignore[operator]
    found: list[tuple[float, float]] = []
    for _ in range(n_rounds):
        seconds = []
        for step, takes_part in ((alone, leads), (together, True)):
            mx.nd.waitall()
            store._barrier()
            start = time.perf_counter()
            for _ in range(n_clocks if takes_part else 0):
                step()  # type: ignore[operator]
            mx.nd.waitall()
            store._barrier()
            seconds.append((time.perf_counter() - start) / n_clocks)
        found.append((seconds[0], seconds[1]))
    if leads:
        print(json.dumps({"losses": losses, "rounds": found, "version": mx.__version__}), flush=True)


def main() -> None:
    """Start scheduler, server and workers, and print samples/s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clocks", type=int, default=300)
    options = parser.parse_args()
    if os.environ.get("DMLC_ROLE") == "worker":
        work(options.rounds, options.clocks)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port), "DMLC_NODE_HOST": "127.0.0.1"}
    job = {**os.environ, **where, "DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": str(N_WORKERS)}
    children = []
    for role in ("scheduler", "server", *["worker"] * N_WORKERS):
        # A server or scheduler is what `import mxnet` becomes under these variables.
        works = role == "worker"
        command = [__file__, "--rounds", str(options.rounds), "--clocks", str(options.clocks)] if works else ["-c", "import mxnet"]
        output = subprocess.PIPE if works else None
        children.append(subprocess.Popen([sys.executable, *command], env={**job, "DMLC_ROLE": role}, stdout=output, text=True))
    said = "".join(child.communicate()[0] or "" for child in children[2:])
    for child in children[:2]:
        child.wait()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    assert lines, "no worker of MXNet answered; its message stands above"
    found = json.loads(lines[0])
    alone, together = (median(pair[i] for pair in found["rounds"]) for i in (0, 1))
    ratio = median(a / b for a, b in found["rounds"])
    print(f"\nMXNet {found['version']}, KVStore dist_sync, {N_WORKERS} workers, 1 server: {options.rounds} rounds of {options.clocks} clocks")
    print(f"losses of {N_COMPARED} steps alone: {found['losses'][0]:.4f} -> {found['losses'][-1]:.4f}")
    print(f"one worker without KVStore    median {alone * 1e3:7.3f} ms  {SHARE / alone:7.0f} samples/s")
    rate = N_WORKERS * SHARE / together
    print(f"dist_sync                     median {together * 1e3:7.3f} ms  {rate:7.0f} samples/s, x{N_WORKERS * ratio:.2f} of one worker")


if __name__ == "__main__":
    main()
