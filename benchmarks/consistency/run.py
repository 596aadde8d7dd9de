"""Answer "what does each consistency model gain?": `python benchmarks/consistency/run.py [--rounds R] [--what ...] [--smoke]`."""

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
QUESTIONS = ("jitter", "straggler", "hog", "hog-apart", "simulated", "commands")


def start(n_ranks: int, script: str, *words: str) -> None:
    """Run a script of this folder on ranks."""
    command, env = mpirun_command(n_ranks, unhindered(os.environ))
    subprocess.run([*command, sys.executable, str(HERE / script), *words], env=env, check=True)


def main() -> None:
    """Start the ranks of each question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="rounds with sleeps")
    parser.add_argument("--clocks", type=int, default=200, help="clocks of each measurement with sleeps")
    parser.add_argument("--hog-rounds", type=int, default=6)
    parser.add_argument("--command-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement beside the hog")
    parser.add_argument("--hogged", choices=("0", "1"), default="0", help="the worker whose core is hogged")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds that each part may wait for others to be quiet")
    parser.add_argument("--what", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    rounds, clocks, mean, slow = ("1", "8", "0.001", "0.001") if options.smoke else (str(options.rounds), str(options.clocks), "0.005", "0.01")
    print("\n".join(describe(os.environ, options.smoke)))
    print(
        f"quiet: rounds in which others took less than {QUIET:.0%} of a core; gains are taken round by round, and judged by the quiet ones",
        flush=True,
    )
    patient = ("--patience", "0" if options.smoke else str(options.patience))
    sleeps = (*patient, "--rounds", rounds, "--clocks", clocks)
    if options.smoke and (asked := [what for what in ("jitter", "straggler", "simulated") if what in options.what]):
        start(3, "sleeping.py", *sleeps, "--mean", mean, *asked)
    elif not options.smoke:
        if "jitter" in options.what:
            start(3, "sleeping.py", *sleeps, "--mean", mean, "jitter")
        if "straggler" in options.what:
            start(3, "sleeping.py", *sleeps, "--mean", slow, "straggler")
    for what, n_ranks in (("hog", 2), ("hog-apart", 3)):
        if what not in options.what:
            continue
        if len(os.sched_getaffinity(0)) < 2:
            print("\nc) a busy neighbour: left out, it needs two cores to pin to", flush=True)
            continue
        full = (str(options.hog_rounds), str(options.seconds), "2", "512,512", "512", "numba")
        sizes = ("1", "0.4", "0.1", "16", "8", "numpy") if options.smoke else full
        names = ("--rounds", "--seconds", "--half-period", "--hidden", "--share", "--backend")
        start(n_ranks, "hogged.py", *(word for pair in zip(names, sizes, strict=True) for word in pair), "--hogged", options.hogged, *patient)
    if "simulated" in options.what and not options.smoke:
        for n_workers in (2, 3, 4):
            start(1 + n_workers, "sleeping.py", *sleeps, "--mean", mean, "simulated")
    if "commands" in options.what:
        sizes = ("1", "8", "--smoke") if options.smoke else (str(options.command_rounds), clocks)
        subprocess.run([sys.executable, str(HERE / "commands.py"), "--rounds", sizes[0], "--clocks", *sizes[1:]], check=True)


if __name__ == "__main__":
    main()
