"""Answer "how much more do two ranks do than one?": `python benchmarks/scaling/run.py [--rounds R] [--steps N] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import LOSS_TOLERANCE, write
from benchmarks.data_parallel.run import HERE as BESIDE
from benchmarks.data_parallel.run import ROWS, SIZES, measured, show, started
from benchmarks.machine import describe, unhindered
from benchmarks.rounds import Sample, interleave

ALONE, TWO, LIMIT = "one rank", "two ranks", "limit: two that never talk"
BATCH, SPEED_UP = 512, 1.8


def apart(words: list[str], env: Mapping[str, str]) -> Sample:
    """Measure two jobs of one rank at once, each on a core of its own, in seconds a sample of both: what two ranks would reach that never told each other anything."""
    cores = sorted(os.sched_getaffinity(0))

    def job(i: int) -> dict[str, float]:
        os.sched_setaffinity(0, {cores[i % len(cores)]})  # of this thread, and so of what it starts
        return started(words, 1, env)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(job, range(2)))
    return Sample(1 / sum(each["samples_per_second"] for each in found), max(min(each["others"] for each in found) - 1, 0.0))


def told(name: str, measure: Callable[[], Sample]) -> Callable[[], Sample]:
    """Return the measurement, printed as soon as it is made."""

    def tell() -> Sample:
        sample = measure()
        print(f"    {name:30s} {1 / sample.seconds:10,.0f} samples/s, others {sample.others:.2f} cores", flush=True)
        return sample

    return tell


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    sizes, rows, batch, n_rounds, steps = ([16, 8, 4], 64, 16, 1, 5) if options.smoke else (SIZES, ROWS, BATCH, options.rounds, options.steps)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    print(f"\n{'-'.join(map(str, sizes))}, momentum, {batch} samples a step of all ranks, {steps} steps, {n_rounds} rounds, as they come:", flush=True)
    losses, env = dict[str, list[float]](), unhindered(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        whole, half = (str(Path(folder, f"{name}.npz")) for name in ("whole", "half"))
        write(Path(whole), sizes, rows, batch, steps)
        write(Path(half), sizes, rows, batch // 2, steps)
        words = {file: [str(BESIDE / "ours.py"), file, str(steps), "data_parallel"] for file in (whole, half)}
        variants = {name: measured(words[whole], n, env, losses, name) for name, n in ((ALONE, 1), (TWO, 2))}
        variants[LIMIT] = lambda: apart(words[half], env)
        rounds = interleave({name: told(name, measure) for name, measure in variants.items()}, n_rounds)
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses[TWO], losses[ALONE], strict=True))
    assert worst < LOSS_TOLERANCE, f"losses of {TWO} differ by {worst:.1e} from those of {ALONE}; a comparison would mean nothing"
    print(f"  losses of {len(losses[TWO])} steps agree within {worst:.1e}; medians:")
    show(rounds, options.smoke, [(TWO, ALONE, SPEED_UP)])
    print(f"       the limit is x{rounds.ratio(ALONE, LIMIT):.2f} of {ALONE}; {TWO} are x{rounds.ratio(LIMIT, TWO):.2f} of it")


if __name__ == "__main__":
    main()
