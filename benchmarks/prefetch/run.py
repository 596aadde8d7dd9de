"""Answer "how much of reading from the disk is hidden behind computing?": `python benchmarks/prefetch/run.py [--rounds R] [--rows N] [--smoke]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.machine import Watch, describe
from benchmarks.rounds import Rounds, Sample, interleave

NETS = {"784-256-10": (784, 256, 1), "784-32-10": (784, 32, 1), "50-64-10": (50, 64, 16)}
"""Features, hidden units, and how many times as many rows."""
BATCH, STEPS, ROWS, SMOKE_ROWS, MEMORY = 256, 200, 60_000, 12_000, "36M"
TARGET = 0.9
"""One rank, a core free: so much of the time that reads take is not waited for, where a step computes for longer than its read takes."""


def train_once(source: str, hidden: int, steps: int, memory: str, ahead: bool, comm: Any) -> Sample:
    """Train some steps; seconds a step, and of rank 0 those of its reads and of its waits for them."""
    from mpidml.core.job import Job
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.reads import Reads
    from mpidml.strategies.base import train

    drop_cached(Path(source))
    begin = Reads.begin
    if not ahead:
        Reads.begin = lambda self: None  # type: ignore[method-assign]
    ranks = CountedComm(comm)
    try:
        with Watch() as watch:
            job = Job(data=source, hidden=(hidden,), batch=BATCH, steps=steps, hold_out=0.0, scale="none", memory=memory)
            found = train(job, ranks, quiet=True, write=False)
    finally:
        Reads.begin = begin  # type: ignore[method-assign]
        ranks.free()
    assert bool(memory) == bool(found["disk_nbytes"]), "the rows are not where this variant wants them"
    extra = {"read": found["read_seconds"][0] / steps, "wait": found["read_wait_seconds"][0] / steps}
    return Sample(found["wall_seconds"] / steps, watch.others(), extra)


def drop_cached(path: Path) -> None:
    """Ask the system to forget what it has read of a file; the pass that fits the scaling reads it once before the run."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: str, n_rounds: int, steps: int) -> None:
    """Run on every rank: all variants, interleaved; rank 0 prints."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    for name, (_, hidden, _) in NETS.items():
        source = str(Path(folder) / name / "x.npy")
        variants = {
            "memory": lambda source=source, hidden=hidden: train_once(source, hidden, steps, "", True, comm),
            "ahead": lambda source=source, hidden=hidden: train_once(source, hidden, steps, MEMORY, True, comm),
            "at once": lambda source=source, hidden=hidden: train_once(source, hidden, steps, MEMORY, False, comm),
        }
        train_once(source, hidden, 5, "", True, comm)  # compiles
        rounds = interleave(variants, n_rounds)
        if comm.rank == 0:
            report(name, comm.size, rounds)


def report(name: str, n_ranks: int, rounds: Rounds) -> None:
    """Print one network at one number of ranks."""
    memory, ahead, at_once = (rounds.samples[of] for of in ("memory", "ahead", "at once"))
    hidden = median(1 - s.extra["wait"] / s.extra["read"] for s in ahead)
    by_clock = median((c.seconds - b.seconds) / max(c.seconds - a.seconds, 1e-9) for a, b, c in zip(memory, ahead, at_once, strict=True))
    step, read = rounds.median("memory"), median(s.extra["read"] for s in at_once)
    cores = sum(median(s.others for s in of) for of in (memory, ahead, at_once)) / 3
    print(
        f"{name:12s}{n_ranks} rank(s)  a step {1e3 * step:7.3f} ms in memory, {1e3 * rounds.median('ahead'):7.3f} ms read ahead, "
        f"{1e3 * rounds.median('at once'):7.3f} ms read at once; a read {1e3 * read:7.3f} ms at once, {1e3 * rounds.extra('ahead', 'read'):7.3f} ms ahead; "
        f"hidden {hidden:.0%} of it, by the clock {by_clock:.0%}  others {cores:.2f} cores",
        flush=True,
    )
    counts = n_ranks == 1 and read < step
    if counts:
        print(f"verdict {'met   ' if hidden >= TARGET else 'MISSED'} {name}: {hidden:.0%} of reading hidden, target {TARGET:.0%}", flush=True)


def write(folder: Path, n: int) -> None:
    """Write rows of float32 for each network, a block at a time."""
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=5))
    for name, (width, _, times) in NETS.items():
        (folder / name).mkdir()
        x = np.lib.format.open_memmap(folder / name / "x.npy", "w+", np.float32, (n * times, width))
        for lo in range(0, len(x), 5000):
            x[lo : lo + 5000] = random.normal(size=x[lo : lo + 5000].shape)
        x.flush()
        np.save(folder / name / "y.npy", np.arange(n * times) % 10)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--folder", default=None, help="where to write (default: the system's folder for temporary files)")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, n_rounds, steps = options.measure
        return measure(folder, int(n_rounds), int(steps))
    from mpidml.runtime.launch import mpirun_command, without_launcher

    print("\n".join(describe(os.environ, options.smoke)))
    n, n_rounds, steps = (SMOKE_ROWS, 1, 5) if options.smoke else (options.rows, options.rounds, STEPS)
    print(f"\n{n_rounds} rounds of {steps} steps of {BATCH} rows, {n * 784 * 4 / 1e6:.0f} MB, --memory {MEMORY}; medians; shares within a run or a round")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        write(Path(name), n)
        for n_ranks in (1, 2):
            words, env = mpirun_command(n_ranks, {**os.environ}) if n_ranks > 1 else ([], without_launcher({**os.environ}))
            result = subprocess.run(
                [*words, sys.executable, __file__, "--measure", name, str(n_rounds), str(steps)], env=env, capture_output=True, text=True
            )
            if result.returncode:
                raise SystemExit(result.stdout + result.stderr)
            lines = result.stdout.splitlines()
            print("\n".join(line.removeprefix("verdict ") for line in lines if not (options.smoke and line.startswith("verdict "))), flush=True)


if __name__ == "__main__":
    main()
