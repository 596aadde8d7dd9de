"""Answer "what does a checkpoint cost?": `python benchmarks/checkpoint/run.py [--rounds R] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.machine import Watch, describe
from benchmarks.rounds import Rounds, Sample, interleave

SIZES = {"240-256-128-10": (256, 128), "240-1024-1024-10": (1024, 1024), "240-3072-3072-10": (3072, 3072)}
SMOKE_SIZES = {"240-16-10": (16,)}
N_CHECKPOINTS, EVERY, BATCH = 4, 5, 64
TARGET = 2.0
"""A checkpoint takes at most so many times as long as a plain write, fsync and SHA-256 of as many bytes, if they are a megabyte or more."""
LARGE = 1e6


def train_once(hidden: tuple[int, ...], folder: Path, every: int) -> Sample:
    """Train in one process; seconds a step, and of a checkpoint its seconds and bytes."""
    from mpidml.core.job import Job
    from mpidml.strategies.base import train

    steps = N_CHECKPOINTS * EVERY
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    job = Job(hidden=hidden, batch=BATCH, steps=steps, checkpoint_every=every, out=str(out), hold_out=0.0)
    with Watch() as watch:
        found = train(job, quiet=True)
    extra = {"checkpoint": 0.0, "nbytes": 0}
    if every:
        newest = max((out / "checkpoints").iterdir())
        extra = {"checkpoint": found["checkpoint_seconds"] / N_CHECKPOINTS, "nbytes": sum(f.stat().st_size for f in newest.iterdir())}
    return Sample((found["wall_seconds"] + found["checkpoint_seconds"]) / steps, watch.others(), extra)


def plain(nbytes: int, folder: Path, sums_up: bool) -> Sample:
    """Write so many bytes to one file and wait until they are on the disk; with `sums_up` read them back for their SHA-256, as a checkpoint does."""
    import hashlib

    data, path = os.urandom(nbytes), folder / "plain"
    with Watch() as watch:
        for _ in range(N_CHECKPOINTS):
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if sums_up:
                with path.open("rb") as file:
                    hashlib.file_digest(file, "sha256")
            path.unlink()
    return Sample(watch.seconds / N_CHECKPOINTS, watch.others())


def report(name: str, rounds: Rounds) -> list[str]:
    """Print one size; return what missed its target."""
    samples = rounds.samples
    nbytes = samples["saved"][0].extra["nbytes"]
    took = [s.extra["checkpoint"] for s in samples["saved"]]
    ratios = {of: sorted(t / s.seconds for t, s in zip(took, samples[of], strict=True)) for of in ("written", "summed")}
    middle = {of: each[len(each) // 2] for of, each in ratios.items()}
    step, median = rounds.median("without"), sorted(took)[len(took) // 2]
    print(
        f"{name:18s}{nbytes / 1e6:8.2f} MB  checkpoint {1e3 * median:8.2f} ms  plain write {1e3 * rounds.median('written'):8.2f} ms (x{middle['written']:.2f}), "
        f"with SHA-256 {1e3 * rounds.median('summed'):8.2f} ms (x{middle['summed']:.2f}, {ratios['summed'][0]:.2f} to {ratios['summed'][-1]:.2f})  "
        f"a step {1e3 * step:7.3f} ms, so 1% every {100 * median / step:,.0f} steps  others {rounds.others('saved'):.2f} cores",
        flush=True,
    )
    return [f"{name}: x{middle['summed']:.2f} of write and SHA-256, target x{TARGET:g}"] if nbytes >= LARGE and middle["summed"] > TARGET else []


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", default=None, help="where to write (default: the system's folder for temporary files)")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    print("\n".join(describe(os.environ, options.smoke)))
    n_rounds, missed = 1 if options.smoke else options.rounds, []
    print(f"\n{n_rounds} rounds of {N_CHECKPOINTS} checkpoints, momentum, one process; medians; ratios within a round")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for size, hidden in (SMOKE_SIZES if options.smoke else SIZES).items():
            nbytes = train_once(hidden, folder, EVERY).extra["nbytes"]  # compiles and warms up, besides
            variants = {
                "without": lambda hidden=hidden: train_once(hidden, folder, 0),
                "saved": lambda hidden=hidden: train_once(hidden, folder, EVERY),
                "written": lambda n=nbytes: plain(n, folder, False),
                "summed": lambda n=nbytes: plain(n, folder, True),
            }
            missed += report(size, interleave(variants, n_rounds))
    if not options.smoke:
        print("\n".join(f"MISSED {what}" for what in missed) or "met    all targets")


if __name__ == "__main__":
    main()
