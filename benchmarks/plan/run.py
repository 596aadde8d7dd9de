"""Answer "does the plan find the fastest way to run a job?": `python benchmarks/plan/run.py [--rounds R] [--steps N] [--smoke]`."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

import numpy as np

from benchmarks.machine import Watch, describe, unhindered
from benchmarks.rounds import Rounds, Sample, interleave
from mpidml.planner.candidate import Candidate, factorisations
from mpidml.runtime.launch import mpirun_command

N_RANKS, N_FEATURES, N_CLASSES, N_CODES = 4, 64, 10, 8
SMOKE_RANKS = 2
TARGET = 1.1
N_SKIPPED = 5
"""Clocks that are not timed: in the first ones steps are bound and memory is first touched."""
Values = dict[str, Any]


def embedding(n_codes: int, units: int) -> str:
    """Return a net file whose weights are a table of so many rows for each of the columns of codes, and little else."""
    table = f'[[layer]]\ntype = "embedding"\ncolumns = {list(range(N_CODES))}\nunits = 16\nrows = {n_codes}\n'
    return table + "".join(f'[[layer]]\ntype = "dense"\nunits = {units}\nactivation = "relu"\n' for _ in range(3)) + '[[layer]]\ntype = "dense"\n'


def problems(folder: Path, smoke: bool) -> dict[str, Values]:
    """Write the data, and return of each network, or of a small one alone, what `train` and `plan` are given."""
    n = 256 if smoke else 4096
    random = np.random.Generator(np.random.Philox(key=3))
    y = np.arange(n) % N_CLASSES
    np.savez(folder / "numbers.npz", x=random.normal(size=(n, N_FEATURES)).astype(np.float32), y=y)
    n_codes = 50 if smoke else 20_000
    np.savez(folder / "codes.npz", x=random.integers(0, n_codes, (n, N_CODES)).astype(np.float32), y=y)
    (folder / "net.toml").write_text(embedding(n_codes, 16 if smoke else 256))
    common: Values = {"batch": 32 if smoke else 256, "optimizer": "momentum", "lr": 1e-3} | ({"backend": "numpy"} if smoke else {})
    numbers = common | {"data": str(folder / "numbers.npz")}
    found = {
        "wide": numbers | {"hidden": "32,32,32" if smoke else "2048,2048,2048"},
        "deep, thin": numbers | {"hidden": ",".join(["8"] * 7 if smoke else ["64"] * 31)},
        "embedding": common | {"data": str(folder / "codes.npz"), "model": str(folder / "net.toml"), "scale": "none"},
    }
    return {"embedding": found["embedding"]} if smoke else found


def planned(values: Values, env: dict[str, str], folder: Path, grids: dict[str, int]) -> dict[str, tuple[dict[str, Any], str]]:
    """Plan on each grid by itself, in one process that is no part of a measurement; return of each the best candidate and "", or {} and why."""
    asked = {
        grid: values | {"ranks": n, "out": str(folder / str(i))} | ({} if n == 1 else {"grid": grid}) for i, (grid, n) in enumerate(grids.items())
    }
    command = [sys.executable, str(Path(__file__)), "--plans", json.dumps(asked)]
    return dict(json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]))


def plans(asked: dict[str, Values]) -> None:
    """Be the other side of `planned`."""
    from mpidml.core.errors import UserError
    from mpidml.plan import plan

    found: dict[str, Any] = {}
    for grid, values in asked.items():
        try:
            found[grid] = plan(values, quiet=True)["candidates"][0], ""
        except UserError as error:
            found[grid] = {}, str(error)
    print(json.dumps(found))


def measured(config: Path, n_ranks: int, steps: int, env: dict[str, str], folder: Path, batch: int) -> Callable[[], Sample]:
    """Return what trains so many steps by a plan, and gives seconds a step."""
    number = [0]

    def run() -> Sample:
        number[0] += 1
        out = folder / f"run-{config.parent.name}-{number[0]}"
        words, ready = mpirun_command(n_ranks, env)
        command = [*words, sys.executable, "-m", "mpidml", "train", "--config", str(config), "--steps", str(steps), "--no-report", "--out", str(out)]
        with Watch() as watch:
            subprocess.run(command, env=ready, capture_output=True, text=True, check=True, timeout=300)
        return Sample(seconds_of([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], batch), watch.others())

    return run


def seconds_of(rows: Sequence[Mapping[str, Any]], batch: int) -> float:
    """Return the seconds of a step, from the `rows` of its metrics, without the first."""
    first, last = rows[min(N_SKIPPED, len(rows) - 1) - 1], rows[-1]
    return batch * float(last["seconds"] - first["seconds"]) / int(last["samples"] - first["samples"])


def look_at(name: str, values: Values, folder: Path, n_rounds: int, steps: int, env: dict[str, str], smoke: bool) -> None:
    """Plan all grids of one network, measure them in interleaved rounds, and print both."""
    n_ranks = SMOKE_RANKS if smoke else N_RANKS
    grids = {Candidate(*grid).grid: n_ranks for grid in factorisations(n_ranks)} | {"one rank": 1}
    variants, simulated, notes = dict[str, Callable[[], Sample]](), dict[str, dict[str, Any]](), list[str]()
    own = folder / name.replace(", ", "-")
    for i, (grid, (best, why)) in enumerate(planned(values, env, own, grids).items()):
        if why:
            notes.append(f"{grid}: {why}")
            continue
        simulated[grid] = best
        variants[grid] = measured(own / str(i) / "plan.toml", grids[grid], steps, env, own, values["batch"])
    show(name, simulated, interleave(variants, n_rounds), smoke)
    print("\n".join(notes), flush=True)


def show(name: str, simulated: dict[str, dict[str, Any]], rounds: Rounds, smoke: bool) -> None:
    """Print a network's table, the plan's choice against the best, and the model's error."""
    print(f"\n{name}\n{'grid':28s}{'schedule':20s}{'M':>4s}{'simulated':>12s}{'measured':>12s}{'ratio':>8s}{'others':>8s}")
    ratios = []
    for grid, best in simulated.items():
        seconds = rounds.median(grid)
        ratios.append(best["seconds"] / seconds)
        schedule = (best["schedule"] or "-") + " recompute" * best["recompute"]
        head = f"{named(grid, best):28s}{schedule:20s}{best['microbatches']:>4d}{1e3 * best['seconds']:>9.3f} ms{1e3 * seconds:>9.3f} ms"
        print(f"{head}{ratios[-1]:>8.2f}{rounds.others(grid):>8.2f}")
    choice, fastest = min(simulated, key=lambda grid: float(simulated[grid]["seconds"])), min(simulated, key=rounds.median)
    ratio = rounds.ratio(choice, fastest)
    error = math.exp(sum(abs(math.log(each)) for each in ratios) / len(ratios))
    chosen, best_named = (named(grid, simulated[grid]) for grid in (choice, fastest))
    print(f"the plan chooses {chosen}, the fastest is {best_named}: {ratio:.2f} times as long; simulated is off by a factor of {error:.2f} in the mean")
    if not smoke:
        print(f"verdict {'met   ' if ratio <= TARGET else 'MISSED'} {name}: {ratio:.2f} times the best, target {TARGET}", flush=True)


def named(grid: str, best: Mapping[str, Any]) -> str:
    """Name what was planned on a grid: of replicas with layers that are cut over them also which."""
    return grid + (f" mix {best['mix']}" if best["mix"] else "")


def main() -> None:
    """Plan, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    parser.add_argument("--plans", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plans:
        return plans(json.loads(options.plans))
    n_ranks, n_rounds, steps = (SMOKE_RANKS, 1, 5) if options.smoke else (N_RANKS, options.rounds, options.steps)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    print(f"cores     {len(os.sched_getaffinity(0))} for {n_ranks} ranks", flush=True)
    print(f"rounds    {n_rounds} of {steps} steps, medians of seconds a step after the first {N_SKIPPED}", flush=True)
    env = unhindered(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        for name, values in problems(Path(folder), options.smoke).items():
            look_at(name, values, Path(folder), n_rounds, steps, env, options.smoke)


if __name__ == "__main__":
    main()
