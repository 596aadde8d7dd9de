"""Hold what the commands measure against what they simulate: `mpidml --sync P` on N ranks beside `mpidml simulate --fit --workers N`, on two.

Most of a compute is a sleep (`--slowdown exponential`), drawn by (seed, worker, clock), so more workers than cores meet the same draws in both.
Nothing is fitted here: a user who asks the same has the same answer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch, unhindered
from benchmarks.rounds import QUIET
from mpidml.runtime.launch import mpirun_command

POLICIES = ("bsp", "ssp:3", "dssp:1:8", "asp")
WORKERS = (2, 3, 4)
FIT_RANKS = 2
WARM_UP_CLOCKS = 10
ENOUGH_QUIET = 3
GAP = 0.10


def run(n_ranks: int, words: list[str], out: Path) -> float:
    """Run a command of the package on ranks, and return the cores that processes which are not ours took."""
    command, env = mpirun_command(n_ranks, unhindered(os.environ))
    with Watch() as watch:
        before = os.times()
        subprocess.run(
            [*command, sys.executable, "-m", "mpidml", *words, "--no-report", "--out", str(out)], env=env, check=True, stdout=subprocess.DEVNULL
        )
        after = os.times()
    own = after.children_user + after.children_system - before.children_user - before.children_system
    return watch.others(own + watch.cpu_seconds)


def measured(out: Path) -> float:
    """Return the samples/s of a run since memory was first touched and a lead built up."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[min(WARM_UP_CLOCKS, len(rows) // 2)], rows[-1]
    return float((last["samples"] - first["samples"]) / (last["seconds"] - first["seconds"]))


def simulated(out: Path) -> dict[str, float]:
    """Return the samples/s of each policy, without the one process that stands before them."""
    rows = json.loads((out / "compare.json").read_text())
    return {policy: row["samples_per_second"] for policy, row in zip(POLICIES, rows[1:], strict=True)}


def main() -> None:
    """Measure and simulate each policy once a round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--clocks", type=int, required=True)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    hidden, share, stretch = ("8", 4, "0.5") if options.smoke else ("256", 32, "7")
    for n in WORKERS[: 1 if options.smoke else None]:
        job = ["--data", "digits", "--hidden", hidden, "--batch", str(n * share), "--slowdown", f"exponential:{stretch}", "--servers", "colocated"]
        ratios: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        rates: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
        quiet = dict.fromkeys(POLICIES, 0)
        for seed in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                told, virtual = ["--seed", str(seed)], Path(folder, "virtual")
                beside = run(FIT_RANKS, ["simulate", "--fit", "--workers", str(n), "--clocks", str(options.clocks), "--sync", ",".join(POLICIES), *job, *told], virtual)
                would = simulated(virtual)
                for number, policy in enumerate(POLICIES):
                    out = Path(folder, str(number))
                    others = max(run(n, ["train", "--sync", policy, "--steps", str(options.clocks), *job, *told], out), beside)
                    rates[policy].append((measured(out), would[policy]))
                    ratios[policy].append(rates[policy][-1][0] / would[policy])
                    quiet[policy] += others < QUIET
        print(f"\ne) the commands: {n} workers, a server beside each, computes of {share} samples that sleep {stretch} times as long; fitted on {FIT_RANKS} ranks")
        print(f"{'policy':14s} {'measured':>9s} {'simulated':>10s} {'ratio':>7s} {'lowest':>7s} {'highest':>7s} {'quiet':>6s}   samples/s")
        for policy, of in ratios.items():
            real, virtually = (median(column) for column in zip(*rates[policy], strict=True))
            print(f"{policy:14s} {real:9,.0f} {virtually:10,.0f} {median(of):7.3f} {min(of):7.3f} {max(of):7.3f} {quiet[policy]:6d}", flush=True)
        if not options.smoke:
            worst = max((median(of) for of in ratios.values()), key=lambda ratio: abs(ratio - 1))
            word = "unsure" if min(quiet.values()) < ENOUGH_QUIET else "met   " if abs(worst - 1) <= GAP else "MISSED"
            print(f"{word} measured over simulated samples/s, {n} workers, the worst policy: {worst:.3f}, target 1 within {GAP:.0%}", flush=True)


if __name__ == "__main__":
    main()
