"""Answer "how fast do two ranks train one network?": `python benchmarks/data_parallel/run.py [--rounds R] [--steps N] [--heat PYTHON] [--smoke]`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import LOSS_TOLERANCE, write
from benchmarks.machine import HINDERING, as_set, describe, ranks_of, unhindered
from benchmarks.rounds import Rounds, Sample, interleave

HERE = Path(__file__).resolve().parent
OURS, SERVER, DDP = "data_parallel, 2 ranks", "parameter_server, 2 ranks", "torch DDP over gloo, 2 ranks"
HEAT, PRODUCTS = "Heat DataParallel, 2 ranks", "limit: the products alone"
SIZES, ROWS, SHARE = [784, 512, 512, 10], 12800, 128


def started(words: list[str], n: int, env: Mapping[str, str], python: str = sys.executable) -> dict[str, Any]:
    """Run a program on n ranks; return what rank 0 says in its last line. Where it fails, what the ranks said is the error."""
    launcher, env = ranks_of(python, n, env)
    done = subprocess.run([*launcher, *words], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{Path(words[0]).name} on {n} rank(s) ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measured(
    words: list[str], n: int, env: Mapping[str, str], losses: dict[str, list[float]], name: str, python: str = sys.executable
) -> Callable[[], Sample]:
    """Return the measurement of one variant in seconds a sample; its losses are kept."""

    def measure() -> Sample:
        Path(f"{words[1]}.group").unlink(missing_ok=True)
        found = started(words, n, env, python)
        if found["losses"]:
            losses[name] = found["losses"]
        return Sample(1 / found["samples_per_second"], found["others"])

    return measure


def peers(heat: str, smoke: bool) -> dict[str, tuple[str, str]]:
    """Return of each peer that can be had its script and the python that has it; say why others are left out."""
    found: dict[str, tuple[str, str]] = {}
    for name, script, package, python, remedy in (
        (DDP, "peer_ddp.py", "torch", sys.executable, "pip install 'mpidml[bench]'"), (HEAT, "peer_heat.py", "heat", heat, "--heat PYTHON, see README.md"),
    ):
        has = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{package}') is None)"
        if smoke:
            print(f"{package} is left out: a smoke run")
        elif subprocess.run([python, "-c", has]).returncode:
            print(f"{package} is left out: it is not installed for {python} ({remedy})")
        else:
            found[name] = script, python
    return found


def compare(losses: Mapping[str, list[float]]) -> None:
    """Print how near the losses of all variants are to ours; AssertionError where one has trained something else."""
    for name, found in losses.items():
        worst = max(abs(a - b) / abs(b) for a, b in zip(found, losses[OURS], strict=True))
        assert worst < LOSS_TOLERANCE, f"{name}: losses differ by {worst:.1e} from ours; a comparison would mean nothing"
        print(f"  losses of {len(found)} steps of {name} agree within {worst:.1e}")


def show(rounds: Rounds, smoke: bool, targets: list[tuple[str, str, float]]) -> None:
    """Print a line a variant, and the targets: (faster, slower, how many times)."""
    for name in rounds.samples:
        print(f"  {name:32s} {1 / rounds.median(name):10,.0f} samples/s, best {1 / rounds.least(name):10,.0f}, others {rounds.others(name):.2f} cores")
    for faster, slower, target in () if smoke else targets:
        ratio = rounds.ratio(slower, faster)
        print(f"{'met   ' if ratio >= target else 'MISSED'} {faster} is x{ratio:.2f} of {slower}, target >= x{target:g}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--heat", metavar="PYTHON", default=sys.executable, help="the python of an environment that has Heat and the same MPI (default: this one)")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    if shutil.which(options.heat) is None:
        parser.error(f"--heat: {options.heat} is no program; give the path of a python")
    sizes, rows, share, n_rounds, steps = ([16, 8, 4], 64, 4, 1, 5) if options.smoke else (SIZES, ROWS, SHARE, options.rounds, options.steps)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    beside = peers(options.heat, options.smoke)
    environments = {"unhindered": unhindered(os.environ)}
    if any(name in os.environ for name in HINDERING):
        environments["as the environment sets it"] = as_set(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "given.npz"))
        write(Path(file), sizes, rows, 2 * share, steps)
        for label, env in environments.items():
            losses: dict[str, list[float]] = {}
            plans = {OURS: ("ours.py", sys.executable, "data_parallel"), SERVER: ("ours.py", sys.executable, "parameter_server")}
            plans |= {PRODUCTS: ("products.py", sys.executable, "")} | {name: (*of, "") for name, of in beside.items()}
            print(f"\n{label}: {'-'.join(map(str, sizes))}, momentum, {share} samples a rank and step, {steps} steps, {n_rounds} rounds", flush=True)
            variants = {
                name: measured([str(HERE / script), file, str(steps), *filter(None, [strategy])], 2, env, losses, name, python)
                for name, (script, python, strategy) in plans.items()
            }
            rounds = interleave(variants, n_rounds)
            compare(losses)
            ddp = 3.0 if label == "unhindered" else 1.5
            show(rounds, options.smoke, [*([(OURS, DDP, ddp)] if DDP in beside else []), (SERVER, OURS, 1 / 1.5)])
            print(f"       {OURS} is x{rounds.ratio(PRODUCTS, OURS):.2f} of {PRODUCTS}")
            for name in beside:
                print(f"       of {name} {OURS} is x{rounds.ratio(name, OURS):.2f}, {PRODUCTS} is x{rounds.ratio(name, PRODUCTS):.2f}")


if __name__ == "__main__":
    main()
