"""Answer "what does a simulated worker cost?": `python benchmarks/simulation/run.py [--workers 100 10000] [--clocks 1000 100] [--rounds R] [--smoke]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe, unhindered
from benchmarks.rounds import Sample, interleave

MEASURE = Path(__file__).resolve().parent / "measure.py"
N_WORKERS, N_CLOCKS = 10_000, 100
SECONDS, MB = 15.0, 300.0
"""Of that many workers and clocks."""
MILLION_SECONDS = 3.0
"""Of a million messages there."""


def measured(which: str, n_workers: int, n_clocks: int) -> Callable[[], Sample]:
    """Return the measurement of one simulation in a process of its own, in CPU seconds."""

    def measure() -> Sample:
        command = [sys.executable, str(MEASURE), which, str(n_workers), str(n_clocks)]
        done = subprocess.run(command, env=unhindered(os.environ), check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        return Sample(found["seconds"], found["others"], found)

    return measure


def show(n_workers: int, n_clocks: int, n_rounds: int) -> tuple[float, float, float]:
    """Print both simulators' figures at one size; return the median seconds and megabytes of ours, and its messages. Raises where they do not simulate the same."""
    rounds = interleave({which: measured(which, n_workers, n_clocks) for which in ("plain", "ours")}, n_rounds)
    if len({sample.extra["virtual"] for of in rounds.samples.values() for sample in of}) > 1:
        raise RuntimeError("the two simulators end at different times: the figures would mean nothing")
    for which in ("plain", "ours"):
        per_clock, ratio = rounds.median(which) / n_workers / n_clocks * 1e6, rounds.ratio(which, "plain")
        print(
            f"{n_workers:8,} {n_clocks:7,} {which:>7s} {rounds.median(which):9.2f} {rounds.least(which):8.2f} {per_clock:12.1f} {ratio:8.2f} "
            f"{rounds.extra(which, 'mb'):7.0f} {rounds.others(which):7.2f}",
            flush=True,
        )
    return rounds.median("ours"), rounds.extra("ours", "mb"), rounds.extra("ours", "messages")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[100, N_WORKERS])
    parser.add_argument("--clocks", type=int, nargs="+", default=[1000, N_CLOCKS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    sizes = [(5, 10)] if options.smoke else list(zip(options.workers, options.clocks, strict=True))
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    print(f"\n{'workers':>8s} {'clocks':>7s} {'':>7s} {'CPU s':>9s} {'least':>8s} {'us a clock':>12s} {'x plain':>8s} {'MB':>7s} {'others':>7s}", flush=True)
    found = {size: show(*size, 1 if options.smoke else options.rounds) for size in sizes}
    if (N_WORKERS, N_CLOCKS) in found:
        seconds, mb, n_messages = found[N_WORKERS, N_CLOCKS]
        million = seconds / n_messages * 1e6
        print(f"{'met   ' if seconds <= SECONDS else 'MISSED'} {N_WORKERS:,} workers x {N_CLOCKS} clocks in {SECONDS:.0f} s: {seconds:.1f} s")
        print(f"{'met   ' if mb <= MB else 'MISSED'} and in {MB:.0f} MB: {mb:.0f} MB")
        print(f"{'met   ' if million <= MILLION_SECONDS else 'MISSED'} a million of its messages in {MILLION_SECONDS:.0f} s: {million:.1f} s of {n_messages:,.0f}")


if __name__ == "__main__":
    main()
