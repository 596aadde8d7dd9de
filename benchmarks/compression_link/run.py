"""Answer "how much sooner does compression learn on a slow link?": `python benchmarks/compression_link/run.py --data mnist.npz [--rounds R] [--smoke]`."""

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

from benchmarks.link import Link, lacking
from benchmarks.machine import describe, unhindered

RATE, WIDE = "100mbit", "10gbit"
PLAIN, ALMOST_FREE = "uncompressed", f"uncompressed, link of {WIDE}"
CODES = {
    "two_bit": ["--compress", "two_bit"],
    "two_bit, no progress thread": ["--compress", "two_bit", "--progress-thread", "off"],
    "one_bit": ["--compress", "one_bit"],
    "top_k, 1%": ["--compress", "top_k:0.01:sampled=true"],
    "bf16": ["--compress", "bf16"],
}
SETTINGS = ["--scale", "minmax", "--hidden", "256,128", "--batch", "128", "--lr", "0.05", "--epochs", "15", "--target", "0.97"]
SMALL = ["--data", "digits", "--hidden", "16", "--batch", "512", "--epochs", "1", "--target", "0.1", "--backend", "numpy"]
TARGET_OF, TARGET = "two_bit", 3.0


def trained(link: Link, settings: list[str], out: Path) -> dict[str, Any]:
    """Train on the two hosts; return the run's summary."""
    words = ["-m", "mpidml", "train", "--strategy", "data_parallel", *settings, "--no-report", "--out", str(out)]
    command, env = link.command(words, unhindered(os.environ))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return dict(json.loads((out / "summary.json").read_text()))


def main() -> None:
    """Train every variant once a seed, and say how much sooner each came to the target than the uncompressed run of the same seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--rounds", type=int, default=3, help="each with a seed of its own")
    parser.add_argument("--smoke", action="store_true", help="run once on the shipped digits; the figures mean nothing")
    options = parser.parse_args()
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    why = lacking()
    if not why and not options.smoke and (not options.data or not Path(options.data).is_file()):
        what = f"there is no file {options.data}" if options.data else "no file was given"
        why = f"{what}; give --data with a .npz of x_train, y_train, x_test, y_test"
    if why:
        print(f"left out: {why}")
        return
    settings = SMALL if options.smoke else [*SETTINGS, "--data", str(Path(options.data).resolve())]
    variants: dict[str, list[str]] = {PLAIN: [], TARGET_OF: CODES[TARGET_OF]} if options.smoke else {PLAIN: [], **CODES}
    found: dict[str, list[dict[str, Any]]] = {}
    print(f"2 hosts x 1 rank, link of {RATE}: train --strategy data_parallel {' '.join(SMALL if options.smoke else SETTINGS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1 if options.smoke else options.rounds):
            plans = [(name, RATE, words) for name, words in variants.items()] + [(ALMOST_FREE, WIDE, [])] * (not options.smoke)
            for number, (name, rate, words) in enumerate(plans):
                with Link(rate) as link:
                    summary = trained(link, [*settings, *words, "--seed", str(seed)], Path(folder, f"{seed}-{number}"))
                found.setdefault(name, []).append(summary)
                print(f"  seed {seed}  {name:28s} {_told(summary)}", flush=True)
    print("\nmedians; sooner: uncompressed seconds over its own, seed by seed")
    for name, rows in found.items():
        ratios = [plain["target_seconds"] / row["target_seconds"] for plain, row in zip(found[PLAIN], rows, strict=True) if _met(plain) and _met(row)]
        sooner = f"x{median(ratios):.2f} sooner ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "never"
        print(f"{name:28s} target met in {sum(map(_met, rows))} of {len(rows)}, {sooner}")
        if name == TARGET_OF and not options.smoke:
            is_met = len(ratios) == len(rows) and median(ratios) >= TARGET
            print(f"{'met   ' if is_met else 'MISSED'} {name}: target x{TARGET:g} in the median, reached by all")


def _met(summary: dict[str, Any]) -> bool:
    return summary["target_seconds"] is not None


def _told(summary: dict[str, Any]) -> str:
    seconds, clocks = summary["seconds"], summary["clocks"]
    when = f"{summary['target_seconds']:7.2f} s, {summary['target_samples']:,} samples" if _met(summary) else "never"
    a_step = f"{1e3 * seconds / clocks:.2f} ms and {max(summary['bytes_sent']) / clocks / 1e3:.0f} KB a step"
    return f"{when}; {a_step}; ended at {summary['test_accuracy']:.4f}"


if __name__ == "__main__":
    main()
