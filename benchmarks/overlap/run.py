"""Answer "how much of the sums hides behind computing on a slow link?": `python benchmarks/overlap/run.py [--rounds R] [--rate 1gbit] [--smoke]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.link import Link, lacking
from benchmarks.machine import describe, unhindered

HERE = Path(__file__).resolve().parent
NBYTES, LAYERS, STEPS, FACTOR = 16 << 20, (32, 8), 3, 1.5
SUMS = "recursive_doubling,ring"
TARGET_OF, TARGET = "sleep: recursive_doubling, progress thread", 0.9


def main() -> None:
    """Measure on an emulated link, and print a line each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", default="1gbit", help="of the emulated link, as tc writes it")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    nbytes, layers, steps, rounds = (1 << 16, (4,), 1, 1) if options.smoke else (NBYTES, LAYERS, STEPS, options.rounds)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    if why := lacking():
        print(f"left out: {why}")
        return
    with Link(options.rate) as link:
        for n_layers in layers:
            words = [str(HERE / "measure.py"), *map(str, (nbytes, n_layers, steps, rounds, FACTOR)), SUMS]
            command, env = link.command(words, unhindered(os.environ))
            found = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=1200).stdout.splitlines()[-1])
            assert not found["one_host"], "the ranks see each other's memory: a comparison would mean nothing"
            print(
                f"\n2 hosts x 1 rank, link of {options.rate}; {nbytes / 1e6:.1f} MB in {n_layers} layers, {steps} steps a round, medians of {rounds} rounds;"
                f" others, and the kernel for the link, took {found['others']:.2f} cores"
            )
            for name, row in found["rows"].items():
                times = "  ".join(f"{what} {row[what] * 1e3:7.1f} ms" for what in ("comm", "compute", "both"))
                print(f"  {name:52s} {times}  hidden {row['hidden']:5.0%} ({row['least']:.0%} to {row['most']:.0%})")
            if not options.smoke:
                share = found["rows"][TARGET_OF]["hidden"]
                print(f"{'met   ' if share >= TARGET else 'MISSED'} {n_layers} layers, {TARGET_OF}: {share:.1%} hidden, target {TARGET:.0%}", flush=True)


if __name__ == "__main__":
    main()
