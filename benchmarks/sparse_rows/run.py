"""Answer "what does a row of a large table cost?": `python benchmarks/sparse_rows/run.py [--rounds R] [--data FILE.svm.gz] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe, unhindered
from mpidml.runtime.launch import mpirun_command

HERE = Path(__file__).resolve().parent


def start(n_ranks: int, script: str, *words: str) -> None:
    """Run a script of this folder on ranks."""
    command, env = mpirun_command(n_ranks, unhindered(os.environ))
    subprocess.run([*command, sys.executable, str(HERE / script), *words], env=env, check=True)


def main() -> None:
    """Start the ranks of each question: two servers and one or two workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the table, each of 16 float32")
    parser.add_argument("--data", default="", help="svmlight file with labels -1 and 1, for the example that learns")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    rows, rounds, clocks = ("20000", "1", "3") if options.smoke else (str(options.rows), str(options.rounds), "60")
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    for n_workers in (1, 2):
        start(2 + n_workers, "measure.py", "--rows", rows, "--rounds", rounds, "--clocks", clocks, *(["--smoke"] if options.smoke else []))
    if not options.data:
        print("\nb) words of e-mails: left out, no --data was given (an svmlight file of word counts, labels -1 and 1)", flush=True)
        return
    start(4, "clicks.py", "--rows", rows, "--data", options.data)


if __name__ == "__main__":
    main()
