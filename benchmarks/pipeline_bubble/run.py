"""Answer "how idle are the ranks of a pipeline?": `python benchmarks/pipeline_bubble/run.py [--rounds R] [--microbatches M] [--seconds S] [--smoke]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe, unhindered
from benchmarks.rounds import Rounds, Sample, interleave
from mpidml.core import plugins
from mpidml.core.lowering import lower
from mpidml.core.replay import replay
from mpidml.runtime.launch import mpirun_command

HERE = Path(__file__).resolve().parent
N_RANKS = 4
GAP, OVERHEAD_SECONDS = 0.05, 100e-6
FLUSHING = {name: made for name in plugins.names("mpidml.schedules") for made in [plugins.make("mpidml.schedules", name)] if made.trains and not made.update_every(N_RANKS)}

BARE = {name: f"{name}, bare" for name in FLUSHING}


def measured(name: str, n_items: int, seconds: float, clocks: int, env: Mapping[str, str], bare: bool) -> Callable[[], Sample]:
    """Return the measurement of one schedule, in seconds a clock; `bare`: of processes that sleep and wake each other by pipes, the limit."""

    def measure() -> Sample:
        launcher, full = ([], dict(env)) if bare else mpirun_command(N_RANKS, dict(env))
        words = ["bare.py" if bare else "measure.py", name, str(n_items), str(seconds), str(clocks), str(FLUSHING[name].n_chunks)]
        done = subprocess.run([*launcher, sys.executable, str(HERE / words[0]), *words[1:]], env=full, check=True, capture_output=True, text=True, timeout=120)
        found = json.loads(done.stdout.splitlines()[-1])
        return Sample(found["seconds"], found["others"], found)

    return measure


def bubble(name: str, n_items: int) -> float:
    """Return the share of idle time by the schedule's formula, or where it has none for this size by a replay."""
    share = FLUSHING[name].bubble(N_RANKS, n_items)
    return replay(lower(FLUSHING[name], N_RANKS, n_items)).bubble(N_RANKS) if share is None else float(share)


def show(rounds: Rounds, n_items: int, seconds: float, smoke: bool) -> None:
    """Print a line a schedule, and the verdicts."""
    print("                                                       us above computes, by actions of the chain")
    print(f"{'schedule':14s} {'formula':>8s} {'measured':>9s} {'gap':>7s} {'ms a clock':>11s} {'ours':>10s} {'bare pipes':>11s} {'runtime':>8s} {'others':>7s}")
    gaps, ours = dict[str, float](), dict[str, float]()
    for name in [name for name in rounds.samples if name not in BARE.values()]:
        share, found = bubble(name, n_items), rounds.extra(name, "bubble")
        pairs = zip(rounds.samples[name], rounds.samples[BARE[name]], strict=True)
        gaps[name], ours[name] = abs(found - share), median(own.extra["of_chain"] - bare.extra["of_chain"] for own, bare in pairs)
        print(
            f"{name:14s} {share:8.1%} {found:9.1%} {found - share:+7.1%} {rounds.median(name) * 1e3:11.1f} {rounds.extra(name, 'of_chain') * 1e6:10.0f} "
            f"{rounds.extra(BARE[name], 'of_chain') * 1e6:11.0f} {ours[name] * 1e6:8.0f} {max(rounds.others(name), rounds.others(BARE[name])):7.2f}"
        )
    if smoke:
        return
    worst = max(gaps, key=lambda name: gaps[name])
    print(f"{'met   ' if gaps[worst] <= GAP else 'MISSED'} bubble within {GAP:.0%} of the ranks' time of its formula: at most {gaps[worst]:.1%} off ({worst})")
    worst = max(ours, key=lambda name: ours[name])
    verdict = "met   " if ours[worst] < OVERHEAD_SECONDS else "MISSED"
    print(f"{verdict} runtime an action, above what bare pipes take, < {OVERHEAD_SECONDS * 1e6:.0f} us: at most {ours[worst] * 1e6:.0f} ({worst})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.02, help="of a rank's forward of one microbatch")
    parser.add_argument("--clocks", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    n_items, seconds, clocks, n_rounds = (4, 1e-4, 2, 1) if options.smoke else (options.microbatches, options.seconds, options.clocks, options.rounds)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    names = ["one_f_one_b"] if options.smoke else list(FLUSHING)
    print(f"\n{N_RANKS} ranks, {n_items} microbatches, a forward sleeps {seconds * 1e3:g} ms, {n_rounds} rounds of {clocks} clocks", flush=True)
    env = unhindered(os.environ)
    variants = {(BARE[name] if bare else name): measured(name, n_items, seconds, clocks, env, bare) for name in names for bare in (False, True)}
    show(interleave(variants, n_rounds), n_items, seconds, options.smoke)


if __name__ == "__main__":
    main()
