"""Answer "servers, or sums over ranks?": `python benchmarks/server_or_allreduce/run.py [--rounds R] [--steps N] [--out PNG] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import write
from benchmarks.data_parallel.run import HERE as BESIDE
from benchmarks.data_parallel.run import OURS, ROWS, SERVER, SHARE, SIZES, compare, measured, show
from benchmarks.machine import describe, unhindered
from benchmarks.rounds import interleave
from mpidml.core.cost import CostModel
from mpidml.sim import data_parallel
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sync.base import make_policy

COMPUTE_SECONDS, LATENCY_SECONDS, CLOCKS = 0.02, 50e-6, 5
WORKERS = (2, 4, 16, 64, 256)
MODEL_NBYTES = tuple(10**k for k in range(4, 10))
LINKS = {"1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}


def clock_seconds(n_workers: int, nbytes: int, rate: float) -> tuple[float, float]:
    """Return the seconds of a clock through colocated servers, a shard each, and of one by sums; bsp, computes that are alike.

    It is what more clocks take longer: the first and the last one of a run have fewer reads.
    """
    cost = CostModel((COMPUTE_SECONDS,), latency=LATENCY_SECONDS, bytes_per_second=rate)

    def seconds(clocks: int) -> tuple[float, float]:
        servers = Plan(make_policy("bsp"), n_workers, clocks, cost, n_workers, nbytes, colocated=True)
        return simulate(servers).seconds, data_parallel.simulate(Plan(make_policy("bsp"), n_workers, clocks, cost, 0, nbytes), "auto").seconds

    few, many = seconds(CLOCKS), seconds(2 * CLOCKS)
    return (many[0] - few[0]) / CLOCKS, (many[1] - few[1]) / CLOCKS


def draw(found: dict[str, dict[tuple[int, int], float]], path: str) -> None:
    """Draw one panel a link: workers across, model size up, and in each cell how many times as long a clock takes through servers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    from mpidml.runtime.plot_style import INK, STYLE

    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = plt.subplots(1, len(found), figsize=(4.2 * len(found), 4.4), layout="constrained", sharey=True)
        for axes, (link, cells) in zip(np.atleast_1d(panels), found.items(), strict=True):
            workers, sizes = sorted({w for w, _ in cells}), sorted({n for _, n in cells})
            grid = np.array([[cells[w, n] for w in workers] for n in sizes])
            axes.imshow(grid, cmap="PuOr", vmin=0.9, vmax=1.1, origin="lower", aspect="auto")
            for y, row in enumerate(grid):
                for x, ratio in enumerate(row):
                    axes.text(x, y, f"{ratio:.2f}", ha="center", va="center", color=INK, fontsize=8)
            axes.set_xticks(range(len(workers)), [str(w) for w in workers])
            axes.set_yticks(range(len(sizes)), [f"{n / 1e6:g} MB" for n in sizes])
            axes.set(title=link, xlabel="workers")
        np.atleast_1d(panels)[0].set_ylabel("size of the model")
        figure.suptitle("A clock through servers over one by sums: above 1 (violet) sums win, below 1 (orange) servers do", fontsize=10.5)
        figure.savefig(path, dpi=110)


def table(found: dict[str, dict[tuple[int, int], float]]) -> None:
    """Print the same figures."""
    for link, cells in found.items():
        workers = sorted({w for w, _ in cells})
        print(f"\n{link}: seconds of a clock through servers over those by sums\n{'model':>10s}" + "".join(f"{w:>8d}" for w in workers))
        for n in sorted({n for _, n in cells}):
            print(f"{n / 1e6:>7g} MB" + "".join(f"{cells[w, n]:>8.2f}" for w in workers))


def main() -> None:
    """Measure two ranks, simulate many, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", default="", metavar="PNG", help="where the plot goes (default: none)")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    sizes, rows, share, n_rounds, steps = ([16, 8, 4], 64, 4, 1, 5) if options.smoke else (SIZES, ROWS, SHARE, options.rounds, options.steps)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file, env = str(Path(folder, "two.npz")), unhindered(os.environ)
        losses: dict[str, list[float]] = {}
        write(Path(file), sizes, rows, 2 * share, steps)
        variants: dict[str, Any] = {
            name: measured([str(BESIDE / "ours.py"), file, str(steps), strategy], 2, env, losses, name)
            for name, strategy in ((OURS, "data_parallel"), (SERVER, "parameter_server"))
        }
        print(f"\nmeasured on two ranks: {'-'.join(map(str, sizes))}, {share} samples a rank and step, {n_rounds} rounds of {steps} steps", flush=True)
        rounds = interleave(variants, n_rounds)
        compare(losses)
        show(rounds, options.smoke, [(SERVER, OURS, 1 / 1.5)])
    workers, models = (WORKERS[:2], MODEL_NBYTES[:2]) if options.smoke else (WORKERS, MODEL_NBYTES)
    found: dict[str, dict[tuple[int, int], float]] = {}
    for link, rate in LINKS.items():
        found[link] = {}
        for w in workers:
            for n in models:
                through_servers, by_sums = clock_seconds(w, n, rate)
                found[link][w, n] = through_servers / by_sums
    print(f"\nsimulated: computes of {COMPUTE_SECONDS * 1e3:g} ms, latency {LATENCY_SECONDS * 1e6:g} us, bsp, a server beside each worker; sums by the cheapest collective")
    table(found)
    if options.out:
        draw(found, options.out)
        print(f"\nwritten: {options.out}")


if __name__ == "__main__":
    main()
