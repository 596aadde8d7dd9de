"""Answer "how fast do two ranks train a net each of whose layers is cut in two?": `python benchmarks/tensor/run.py [--rounds R] [--steps N] [--smoke]`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data_parallel.problem import write
from benchmarks.machine import unhindered
from benchmarks.pipeline.problem import LOSS_TOLERANCE
from benchmarks.pipeline.run import N_ITEMS, asked, measured, verdict
from benchmarks.rounds import Rounds, interleave

OURS = Path(__file__).resolve().parents[1] / "pipeline" / "ours.py"
CUT, WHOLE, APART = "two ranks, each with half of every layer", "one rank", "two ranks apart, half the net each"
SPEED_UP = 1.5


def show(rounds: Rounds, smoke: bool) -> None:
    """Print a line a variant, and the verdict."""
    for name in rounds.samples:
        print(f"  {name:44s} {1 / rounds.median(name):8,.0f} samples/s, best {1 / rounds.least(name):8,.0f}, others {rounds.others(name):.2f} cores")
    if smoke:
        return
    quiet = rounds.ratios(WHOLE, CUT, quiet=True)
    verdict(f"{CUT}, over {WHOLE}", median(quiet or rounds.ratios(WHOLE, CUT)), SPEED_UP, bool(quiet))
    print(f"       {APART}, nobody waits: x{rounds.ratio(WHOLE, APART):.2f}, the most that these cores can give")


def main() -> None:
    """Measure and print."""
    is_smoke, sizes, rows, share, n_rounds, steps = asked(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "given.npz"))
        write(Path(file), sizes, rows, N_ITEMS * share, steps)
        losses, env = dict[str, list[float]](), unhindered(os.environ)
        plans = {CUT: (2, ["--tensor"]), WHOLE: (1, []), APART: (2, ["--apart"])}
        variants = {
            name: measured([str(OURS), file, str(steps), "1", "one_f_one_b", *more, *["--numpy"] * is_smoke], n, env, losses, name)
            for name, (n, more) in plans.items()
        }
        rounds = interleave(variants, n_rounds)
    apart = max(abs(a - b) for a, b in zip(losses[CUT], losses[WHOLE], strict=True))
    if apart > LOSS_TOLERANCE:
        raise SystemExit(f"losses of {CUT} are {apart:.2g} from those of {WHOLE}; they do not train the same net")
    print(f"losses of the first steps agree within {apart:.1g}")
    show(rounds, is_smoke)


if __name__ == "__main__":
    main()
