"""Answer "how fast is one training step on one core?": `python benchmarks/training_step/run.py [--rounds R] [--steps N] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import HINDERING, as_set, describe, unhindered
from benchmarks.rounds import Child, Rounds, Sample, interleave
from benchmarks.training_step.problem import LOSS_TOLERANCE

HERE = Path(__file__).resolve().parent
LARGE: dict[str, Any] = {"sizes": [784, 512, 512, 10], "batch": 128}
TINY: dict[str, Any] = {"sizes": [4, 4, 4, 2], "batch": 1}
OURS, DRIVEN, WIDTH = "ours", "ours, each step a clock through the driver", 44
SMOKE: dict[str, Any] = {"sizes": [16, 8, 4], "batch": 4}


def sampler(child: Child, **question: Any) -> Callable[[], Sample]:
    """Return the measurement that asks `child` this question."""

    def measure() -> Sample:
        found = child.ask(**question)
        return Sample(found["seconds"], found["others"], {"cpu": found["cpu"]})

    return measure


def check_losses(ours: list[float], theirs: list[float], name: str) -> None:
    """Raise AssertionError unless both sides do the same work: losses that agree step by step, and fall."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    assert worst < LOSS_TOLERANCE, f"{name}: losses differ by {worst:.1e} from ours, more than {LOSS_TOLERANCE:g}; a comparison would mean nothing"
    assert ours[-1] < ours[0], f"the loss does not fall: {ours[0]:.4f} -> {ours[-1]:.4f}"
    print(f"{name}: losses of {len(ours)} steps agree within {worst:.1e} ({ours[0]:.4f} -> {ours[-1]:.4f})")


def table(rounds: Rounds, base: str) -> None:
    """Print one line a variant, with its ratio to `base` within each round.

    All is done by one thread, so on a quiet machine CPU time and wall time are one; on a busy one CPU time is what remains comparable.
    """
    for name in rounds.samples:
        cpu, wall, least = (seconds * 1e6 for seconds in (rounds.extra(name, "cpu"), rounds.median(name), rounds.least(name)))
        text = f"{name:{WIDTH}s} CPU {cpu:7.1f} us  wall {wall:7.1f}, least {least:7.1f}"
        if name != base:
            quiet = rounds.ratios(name, base, quiet=True)
            text += f"  x{rounds.extra_ratio(name, base, 'cpu'):.2f} of {base} by CPU, x{rounds.ratio(name, base):.2f} by wall"
            text += f", quiet({len(quiet)}) x{median(quiet):.2f}" if quiet else ", no quiet round"
        text += f"  others {rounds.others(name):.2f} cores"
        print(text, flush=True)


def verdict(what: str, value: float, target: float, unit: str, at_least: bool) -> None:
    """Say plainly whether a target is met."""
    met = value >= target if at_least else value <= target
    print(f"{'met   ' if met else 'MISSED'} {what}: {value:.3g} {unit}, target {'>=' if at_least else '<'} {target:g}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="steps of the large net in each measurement; the tiny one makes 100 times as many")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    n_rounds, n_steps, large = (1, 1, SMOKE) if options.smoke else (options.rounds, options.steps, LARGE)
    print("\n".join(describe(os.environ, options.smoke)))

    environments = {"unhindered": unhindered(os.environ)}
    if any(name in os.environ for name in HINDERING):
        environments["as the environment sets it"] = as_set(os.environ)
    for label, env in environments.items():
        ours, torch = (Child([sys.executable, str(HERE / name)], env) for name in ("ours.py", "peer_torch.py"))
        what = torch.ask(ask="what")
        updates = [] if "missing" in what else ["foreach", "fused"]
        peer = f"torch {what['version']}, {what['threads']} thread, MKL {what['mkl']}" if updates else f"torch is left out: {what['missing']}"
        print(f"\n{label}: {peer}")
        for size, net, factor in (("large", large, 1), ("tiny", TINY, 1 if options.smoke else 100)):
            losses = ours.ask(ask="losses", **net)["losses"]
            variants = {OURS: sampler(ours, ask="step", n=n_steps * factor, **net)}
            for update in updates:
                check_losses(losses, torch.ask(ask="losses", update=update, **net)["losses"], f"torch {update}")
                variants[f"torch {update}"] = sampler(torch, ask="step", n=n_steps * factor, update=update, **net)
            if size == "tiny":
                variants[DRIVEN] = sampler(ours, ask="clock", n=n_steps * factor)
            for measure in variants.values():
                measure()
            steps = f"{n_rounds} rounds of {n_steps * factor} steps"
            print(f"{'-'.join(map(str, net['sizes']))}, batch {net['batch']}: forward, backward and momentum update; {steps}")
            rounds = interleave(variants, n_rounds)
            table(rounds, OURS)
            if options.smoke:
                continue
            if size == "large" and updates:
                best = min(rounds.extra_ratio(f"torch {update}", OURS, "cpu") for update in updates)
                verdict("the best of torch over ours, CPU time", best, 2.2 if label == "unhindered" else 1.3, "times", at_least=True)
            if size == "tiny" and label == "unhindered":
                verdict("a step of the tiny net, CPU time", rounds.extra(OURS, "cpu") * 1e6, 15, "us", at_least=False)
                verdict("a clock of it through the driver, CPU time", rounds.extra(DRIVEN, "cpu") * 1e6, 40, "us", at_least=False)
        for child in (ours, torch):
            child.close()


if __name__ == "__main__":
    main()
