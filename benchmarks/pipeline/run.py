"""Answer "how fast do two ranks train a net that is cut in two?": `python benchmarks/pipeline/run.py [--rounds R] [--steps N] [--smoke]`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import write
from benchmarks.data_parallel.run import started
from benchmarks.machine import describe, unhindered
from benchmarks.pipeline.problem import LOSS_TOLERANCE
from benchmarks.rounds import Rounds, Sample, interleave

HERE = Path(__file__).resolve().parent
OURS, OURS_1F1B = "two ranks, zero_bubble", "two ranks, one_f_one_b"
WHOLE, PARTS, APART = "one rank, 1 microbatch", "one rank, 8 microbatches", "two ranks apart, half the net each"
TORCH, TORCH_WHOLE = "torch Schedule1F1B over gloo, two ranks", "torch, one rank, 1 microbatch"
BY_CPU = ", by CPU"
SIZES, ROWS, SHARE, N_ITEMS = [1024] * 9 + [10], 12800, 64, 8
SPEED_UP, OVER_PEER = 1.7, 1.3


def measured(words: list[str], n: int, env: Mapping[str, str], losses: dict[str, list[float]], name: str) -> Callable[[], Sample]:
    """Return the measurement of one variant in seconds a sample; its losses are kept."""

    def measure() -> Sample:
        Path(f"{words[1]}.group").unlink(missing_ok=True)
        found = started(words, n, env)
        losses[name] = found["losses"]
        return Sample(1 / found["samples_per_second"], found["others"], found)

    return measure


def verdict(what: str, ratio: float, target: float, quiet: bool = True) -> None:
    """Print whether a ratio reaches its target, or that the machine was too busy to tell."""
    print(f"{'unsure' if not quiet else 'met   ' if ratio >= target else 'MISSED'} {what}: x{ratio:.2f}, target >= x{target:g}", flush=True)


def show(rounds: Rounds, smoke: bool) -> None:
    """Print a line a variant, ratios and the verdicts: by the clock, and by CPU time, which says what cores without others would give."""
    for name in rounds.samples:
        print(f"  {name:44s} {1 / rounds.median(name):8,.0f} samples/s, best {1 / rounds.least(name):8,.0f}, others {rounds.others(name):.2f} cores")
    if smoke:
        return
    alone = min((WHOLE, PARTS), key=rounds.least)
    quiet = rounds.ratios(alone, OURS, quiet=True)
    verdict(f"by the clock, {OURS} over {alone}", median(quiet or rounds.ratios(alone, OURS)), SPEED_UP, bool(quiet))
    print(f"       over {WHOLE} x{rounds.ratio(WHOLE, OURS):.2f}, over {PARTS} x{rounds.ratio(PARTS, OURS):.2f}")
    print(f"       {APART}, nobody waits: x{rounds.ratio(alone, APART):.2f} of {alone}, the most that these cores can give")
    alone = min((WHOLE, PARTS), key=lambda name: rounds.median(name + BY_CPU))
    verdict(f"by CPU time, {OURS} over {alone}", rounds.ratio(alone + BY_CPU, OURS + BY_CPU), SPEED_UP)
    print(f"       over {WHOLE} x{rounds.ratio(WHOLE + BY_CPU, OURS + BY_CPU):.2f}, over {PARTS} x{rounds.ratio(PARTS + BY_CPU, OURS + BY_CPU):.2f}")
    print(f"       by one_f_one_b x{rounds.ratio(WHOLE + BY_CPU, OURS_1F1B + BY_CPU):.2f}, x{rounds.ratio(PARTS + BY_CPU, OURS_1F1B + BY_CPU):.2f}")
    if TORCH in rounds.samples:
        quiet = rounds.ratios(TORCH, OURS, quiet=True)
        verdict(f"by the clock, {OURS} over {TORCH}", median(quiet or rounds.ratios(TORCH, OURS)), OVER_PEER, bool(quiet))
        bound = rounds.extra(TORCH, "cpu") * (N_ITEMS + 1) / N_ITEMS
        verdict("by CPU time, over its busier rank with the bubble of its schedule alone", bound / rounds.median(OURS + BY_CPU), OVER_PEER)
        print(f"       torch's two ranks over its one: x{rounds.ratio(TORCH_WHOLE, TORCH):.2f}; by CPU time x{rounds.extra(TORCH_WHOLE, 'cpu') / bound:.2f}")


def asked(doc: str | None) -> tuple[bool, list[int], int, int, int, int]:
    """Read the command line and say what is measured on: whether it is a smoke run, widths, rows, rows of a microbatch, rounds, steps."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    print("\n".join(describe(os.environ, options.smoke)), flush=True)
    return (True, [16] * 3 + [4], 64, 4, 1, 5) if options.smoke else (False, SIZES, ROWS, SHARE, options.rounds, options.steps)


def main() -> None:
    """Measure and print."""
    is_smoke, sizes, rows, share, n_rounds, steps = asked(__doc__)
    has_torch = importlib.util.find_spec("torch") is not None and not is_smoke
    if not has_torch:
        print("torch is left out: " + ("a smoke run" if is_smoke else "it is not installed (pip install 'mpidml[bench]')"))
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "given.npz"))
        write(Path(file), sizes, rows, N_ITEMS * share, steps)
        many, losses, env = str(N_ITEMS), dict[str, list[float]](), unhindered(os.environ)
        plans = {
            OURS: ("ours.py", 2, [many, "zero_bubble"]),
            OURS_1F1B: ("ours.py", 2, [many, "one_f_one_b"]),
            WHOLE: ("ours.py", 1, ["1", "one_f_one_b"]),
            PARTS: ("ours.py", 1, [many, "one_f_one_b"]),
            **{
                name + BY_CPU: ("by_cpu.py", n, [of, schedule])
                for name, n, of, schedule in (
                    (OURS, 2, many, "zero_bubble"), (OURS_1F1B, 2, many, "one_f_one_b"), (WHOLE, 1, "1", "one_f_one_b"), (PARTS, 1, many, "one_f_one_b"),
                )
            },
            APART: ("ours.py", 2, [many, "one_f_one_b", "--apart"]),
        }
        if is_smoke:
            plans = {name: plans[name] for name in (OURS, WHOLE, OURS + BY_CPU, APART)}
        if has_torch:
            plans |= {TORCH: ("peer_torch.py", 2, [many]), TORCH_WHOLE: ("peer_torch.py", 1, ["1"])}
        print(f"\n{'-'.join(map(str, sizes))}, SGD, {N_ITEMS} microbatches of {share}, {steps} steps, {n_rounds} rounds", flush=True)
        variants = {
            name: measured([str(HERE / script), file, str(steps), *more, *["--numpy"] * is_smoke], n, env, losses, name)
            for name, (script, n, more) in plans.items()
        }
        rounds = interleave(variants, n_rounds)
        for name, found in losses.items():
            worst = max(abs(a - b) / abs(b) for a, b in zip(found, losses[OURS], strict=True))
            assert name == APART or worst < LOSS_TOLERANCE, f"{name}: losses differ by {worst:.1e} from ours; a comparison would mean nothing"
            if name != APART:
                print(f"  losses of {len(found)} steps of {name} agree within {worst:.1e}")
        show(rounds, is_smoke)


if __name__ == "__main__":
    main()
