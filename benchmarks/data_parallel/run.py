"""Answer "how fast do two ranks train one network?": `python benchmarks/data_parallel/run.py [--rounds R] [--steps N] [--smoke]`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import LOSS_TOLERANCE, write
from benchmarks.machine import HINDERING, as_set, describe, unhindered
from benchmarks.rounds import Rounds, Sample, interleave
from mpidml.runtime.launch import mpirun_command

HERE = Path(__file__).resolve().parent
OURS, SERVER, DDP = "data_parallel, 2 ranks", "parameter_server, 2 ranks", "torch DDP over gloo, 2 ranks"
PRODUCTS = "limit: the products alone"
SIZES, ROWS, SHARE = [784, 512, 512, 10], 12800, 128


def started(words: list[str], n: int, env: Mapping[str, str]) -> dict[str, Any]:
    """Run a program on n ranks; return what rank 0 says in its last line. Where it fails, what the ranks said is the error."""
    launcher, env = mpirun_command(n, dict(env))
    done = subprocess.run([*launcher, sys.executable, *words], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{Path(words[0]).name} on {n} rank(s) ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measured(words: list[str], n: int, env: Mapping[str, str], losses: dict[str, list[float]], name: str) -> Callable[[], Sample]:
    """Return the measurement of one variant in seconds a sample; its losses are kept."""

    def measure() -> Sample:
        Path(f"{words[1]}.group").unlink(missing_ok=True)
        found = started(words, n, env)
        if found["losses"]:
            losses[name] = found["losses"]
        return Sample(1 / found["samples_per_second"], found["others"])

    return measure


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
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    sizes, rows, share, n_rounds, steps = ([16, 8, 4], 64, 4, 1, 5) if options.smoke else (SIZES, ROWS, SHARE, options.rounds, options.steps)
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    has_torch = importlib.util.find_spec("torch") is not None and not options.smoke
    if not has_torch:
        print("torch is left out: " + ("a smoke run" if options.smoke else "it is not installed (pip install 'mpidml[bench]')"))
    environments = {"unhindered": unhindered(os.environ)}
    if any(name in os.environ for name in HINDERING):
        environments["as the environment sets it"] = as_set(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "given.npz"))
        write(Path(file), sizes, rows, 2 * share, steps)
        for label, env in environments.items():
            losses: dict[str, list[float]] = {}
            plans = {OURS: ("ours.py", 2, "data_parallel"), SERVER: ("ours.py", 2, "parameter_server")}
            plans[PRODUCTS] = ("products.py", 2, "")
            if has_torch:
                plans[DDP] = ("peer_ddp.py", 2, "")
            print(f"\n{label}: {'-'.join(map(str, sizes))}, momentum, {share} samples a rank and step, {steps} steps, {n_rounds} rounds", flush=True)
            variants = {
                name: measured([str(HERE / script), file, str(steps), *filter(None, [strategy])], n, env, losses, name)
                for name, (script, n, strategy) in plans.items()
            }
            rounds = interleave(variants, n_rounds)
            for name, found in losses.items():
                worst = max(abs(a - b) / abs(b) for a, b in zip(found, losses[OURS], strict=True))
                assert worst < LOSS_TOLERANCE, f"{name}: losses differ by {worst:.1e} from ours; a comparison would mean nothing"
                print(f"  losses of {len(found)} steps of {name} agree within {worst:.1e}")
            ddp = 3.0 if label == "unhindered" else 1.5
            show(rounds, options.smoke, [*([(OURS, DDP, ddp)] if has_torch else []), (SERVER, OURS, 1 / 1.5)])
            print(f"       {OURS} is x{rounds.ratio(PRODUCTS, OURS):.2f} of {PRODUCTS}", end="")
            print(f", which are x{rounds.ratio(DDP, PRODUCTS):.2f} of {DDP}" if has_torch else "")


if __name__ == "__main__":
    main()
