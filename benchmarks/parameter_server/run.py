"""Answer "what does the parameter server cost?": `python benchmarks/parameter_server/run.py [--rounds R] [--clocks C] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe, unhindered
from benchmarks.rounds import QUIET
from mpidml.runtime.launch import mpirun_command

HERE = Path(__file__).resolve().parent
QUESTIONS = ("dedicated", "colocated", "idle")


def main() -> None:
    """Start two ranks for each question, and the peer where its python is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clocks", type=int, default=100, help="clocks of each measurement")
    parser.add_argument("--what", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    parser.add_argument("--mxnet", metavar="PYTHON", help="also measure MXNet's KVStore, with the python that has it")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    rounds, clocks, hidden, rows, share = (1, 5, "8", 64, 4) if options.smoke else (options.rounds, options.clocks, "512,512", 12800, 128)
    print("\n".join(describe(os.environ, options.smoke)))
    print(f"cost: against the worker alone in the same round; quiet: rounds in which others took less than {QUIET:.0%} of a core", flush=True)
    words, env = mpirun_command(2, unhindered(os.environ))
    sizes = ["--rounds", str(rounds), "--clocks", str(clocks), "--hidden", hidden, "--rows", str(rows), "--share", str(share)]
    subprocess.run([*words, sys.executable, str(HERE / "measure.py"), *sizes, *options.what], env=env, check=True)
    if options.mxnet:
        command = [options.mxnet, str(HERE / "peer_mxnet.py"), "--rounds", str(rounds), "--clocks", str(clocks)]
        subprocess.run(command, env=unhindered(os.environ), check=True)


if __name__ == "__main__":
    main()
