"""Answer "how long does a sum over two ranks of buffers on a GPU take?": `python benchmarks/gpu_allreduce/run.py [--rounds R] [--sizes BYTES ...] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import card
from benchmarks.machine import describe, unhindered
from mpidml.runtime.launch import mpirun_command

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Start two ranks that measure, on two GPUs where there are as many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 20, 1 << 26], metavar="BYTES")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    sizes, rounds = ([1 << 10], 1) if options.smoke else (options.sizes, options.rounds)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    if reason := card.lacking():
        print(f"left out: {reason}")
        return
    words, env = mpirun_command(2, unhindered(os.environ))
    command = [*words, sys.executable, str(HERE / "measure.py"), "--rounds", str(rounds), "--sizes", *map(str, sizes), *["--smoke"] * options.smoke]
    subprocess.run(command, env=env, check=True)


if __name__ == "__main__":
    main()
