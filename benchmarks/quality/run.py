"""Answer "does every policy learn as well as one process?": `python benchmarks/quality/run.py --data mnist.npz [--rounds R] [--smoke]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch, describe, unhindered
from benchmarks.rounds import QUIET
from mpidml.runtime.launch import mpirun_command

N_RANKS = 4
POLICIES = "bsp,ssp:1,ssp:3,asp,warmup:100:3,dssp:1:8,adaptive:1:8,quorum:3"
SETTINGS = ["--scale", "minmax", "--hidden", "256,128", "--batch", "128", "--lr", "0.05", "--no-tune", "--epochs", "20", "--target", "0.98"]
SMALL = ["--data", "digits", "--hidden", "16", "--epochs", "2", "--target", "0.3", "--backend", "numpy"]


def compare(settings: list[str], out: Path) -> tuple[list[dict[str, Any]], float]:
    """Run `mpidml compare` on the ranks; return its rows, and the cores that processes which are not ours took."""
    command, env = mpirun_command(N_RANKS, unhindered(os.environ))
    with Watch() as watch:
        before = os.times()
        subprocess.run([*command, sys.executable, "-m", "mpidml", "compare", "--sync", POLICIES, *settings, "--no-report", "--out", str(out)], env=env, check=True)
        after = os.times()
    own = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads((out / "compare.json").read_text()), watch.others(own + watch.cpu_seconds)


def keep(plot: Path, target: str) -> None:
    """Save a plot with few colours, so that it is small enough to lie beside the text."""
    from PIL import Image  # comes with matplotlib

    Image.open(plot).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """Compare all policies, once a seed, and say which reached the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--rounds", type=int, default=3, help="comparisons, each with a seed of its own")
    parser.add_argument("--plot", metavar="FILE", help="keep the plot of the first comparison")
    parser.add_argument("--smoke", action="store_true", help="run once on the shipped digits; the figures mean nothing")
    options = parser.parse_args()
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    if not options.smoke and (not options.data or not Path(options.data).is_file()):
        why = f"there is no file {options.data}" if options.data else "no file was given"
        print(f"left out: {why}; give --data with a .npz of x_train, y_train, x_test, y_test")
        return
    settings = SMALL if options.smoke else [*SETTINGS, "--data", options.data]
    print(f"mpirun -n {N_RANKS} python -m mpidml compare --sync {POLICIES} {' '.join(settings if options.smoke else SETTINGS)}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {}
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1 if options.smoke else options.rounds):
            out = Path(folder, str(seed))
            rows, others = compare([*settings, "--seed", str(seed)], out)
            shares.append(others)
            for row in rows:
                found.setdefault(row["variant"], []).append(row)
            if options.plot and seed == 0:
                keep(out / "compare.png", options.plot)
    print(
        f"\nseconds to the target, samples to it, and the best test accuracy; others took {', '.join(f'{s:.2f}' for s in shares)} cores (quiet: < {QUIET})"
    )
    for name, rows in found.items():
        got = [row for row in rows if row["seconds_to_target"] is not None]
        text = (
            "never"
            if not got
            else f"median {median(r['seconds_to_target'] for r in got):6.2f} s, {median(r['samples_to_target'] for r in got):9,.0f} samples"
        )
        each = " / ".join("-" if r["seconds_to_target"] is None else f"{r['seconds_to_target']:.2f} s, {r['samples_to_target']:,}" for r in rows)
        dropped = f"; dropped {median(r['dropped_samples'] for r in rows):,.0f} samples" if any(r["dropped_samples"] for r in rows) else ""
        print(f"{name:14s} {text}   ({each})  best {min(r['best_test_accuracy'] for r in rows):.4f} or more{dropped}")
        if not options.smoke:
            word = "met   " if len(got) == len(rows) else "MISSED"
            print(f"{word} {name}: reached the target in {len(got)} of {len(rows)} comparisons, target all", flush=True)


if __name__ == "__main__":
    main()
