"""Measure policies beside a real CPU hog: `mpirun -n 2 python hogged.py ...`, or `-n 3` with a rank that only serves; rank 0 prints the tables.

Each worker is pinned to a core of its own, with the server beside it; a rank that only serves may run on either. Spinning processes take 3/4
of one of the cores by turns. Samples are given out as `--assign dynamic` does, so what is done in equal time is the question.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.consistency.quiet import Patience
from benchmarks.consistency.spinner import is_on
from benchmarks.machine import Watch
from benchmarks.rounds import QUIET, Rounds, Sample, interleave
from mpidml.core.job import Job
from mpidml.nn.models import build
from mpidml.runtime import abort
from mpidml.runtime.comm import CountedComm, world
from mpidml.runtime.dataset import Dataset, load
from mpidml.strategies.parameter_server import ParameterServer

ENOUGH_QUIET = 3  # rounds, for a verdict
PERIOD_SECONDS = 0.1  # of the monitor of the load
JUDGED = ("adaptive:4:32", "adaptive:8:64")
POLICIES = ("bsp", "ssp:10", "adaptive:1:8", *JUDGED, "asp")
OVER_SSP, SHARE_OF_ASP, WITHIN_PERIODS, OWN_LOAD = 1.12, 0.60, 3, 0.1
FOLLOWED = 0.9  # of the hog's begins and ends: at some the quota has just moved for another reason
HEAD_START_SECONDS = 0.3  # in which the spinners start


class Bench:
    """The data on each rank, and the cores; every measurement is collective and returns the same sample on all ranks."""

    def __init__(self, job: Job, comm: CountedComm, cores: list[int], hogged: int, n_spinners: int, half_period: float) -> None:
        self.job, self.comm, self.cores, self.hogged, self.n_spinners, self.half_period = job, comm, cores, hogged, n_spinners, half_period
        self.data: Dataset = load(job, comm)

    def work(self, sync: str, hog: bool = True) -> Sample:
        """Return the seconds a block (the inverse of the work done in equal time), and what quotas, loads and blocks were like."""
        job = replace(self.job, sync=sync).checked()
        comm = CountedComm(self.comm.mpi)  # its windows go with it
        net = build("mlp", self.data.x.shape[1], self.data.n_outputs, job.hidden)
        strategy = ParameterServer(job, comm)
        begin = 0.0
        ends: list[float] = []
        quotas: list[tuple[float, ...]] = []
        loads: list[tuple[float, float]] = []
        spans: list[tuple[float, float]] = []

        def record(role: int, now: float, name: str, value: tuple[float, ...]) -> None:
            if name == "clock":
                ends.append(now - begin)
            elif name == "quota":
                quotas.append((now - begin, *value))

        strategy.prepare(net, self.data, record, lambda now: None, None, lambda now: now - begin >= job.seconds)
        strategy.driver.roles = strategy.roles()
        for worker in strategy.workers.values():
            if (occupancy := worker.load) is not None:
                worker.load = lambda now, occupancy=occupancy: self._noted(loads, now - begin, occupancy(now))
            worker.task.compute = _timed(worker.task.compute, spans)  # type: ignore[method-assign]
        begin = comm.bcast(time.perf_counter() + HEAD_START_SECONDS)
        # The scheduler shares a core out among sessions, and within one among processes: the hog is of the session of the worker that it robs.
        spinner = self._spinner(begin, begin + job.seconds) if hog and comm.rank == comm.size - 2 + self.hogged else None
        time.sleep(max(begin - time.perf_counter(), 0.0))
        with Watch() as watch:
            strategy.driver.run()
        hog_seconds = 0.0
        if spinner is not None:
            hog_seconds = float(spinner.communicate()[0])
        own = [(s - begin, e - begin) for s, e in spans]
        found = comm.allgather((ends, watch.cpu_seconds, quotas, loads, own, hog_seconds, strategy.driver.compute_seconds))
        strategy.free()
        workers = found[-2:]
        n_blocks = sum(end <= job.seconds for f in found for end in f[0])
        extra = {
            "blocks": [sum(end <= job.seconds for end in f[0]) for f in workers],
            "quotas": [quota for f in found for quota in f[2]],
            "loads": [f[3] for f in workers],
            "spans": [f[4] for f in workers],
            "hog": sum(f[5] for f in found) / job.seconds,
        }
        sample = Sample(job.seconds / n_blocks, watch.others(sum(f[1] + f[5] for f in found)), extra)
        if comm.rank == 0 and job.seconds >= 1:
            blocks = "/".join(map(str, extra["blocks"]))
            print(
                f"    {sync if hog else f'{sync}, no hog':14s} {1 / sample.seconds:6.1f} blocks/s  by worker {blocks:9s} others {sample.others:.2f}",
                flush=True,
            )
        comm.free()
        return sample

    def _noted(self, loads: list[tuple[float, float]], now: float, load: float) -> float:
        loads.append((now, load))
        return load

    def _spinner(self, begin: float, until: float) -> subprocess.Popen[str]:
        words = [self.cores[self.hogged], self.n_spinners, begin, self.half_period, until]
        command = [sys.executable, "-S", str(Path(__file__).with_name("spinner.py")), *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _timed(compute: Any, spans: list[tuple[float, float]]) -> Any:
    def timed(turn: Any, report: Any) -> Any:
        start = time.perf_counter()
        result = compute(turn, report)
        spans.append((start, time.perf_counter()))
        return result

    return timed


def moves(quotas: list[tuple[float, ...]], worker: int, half_period: float, seconds: float) -> list[tuple[str, float]]:
    """Return, for each begin and end of the hog, how long after it the quota of `worker` has gone half of its way (inf: it never moved)."""
    steps = [(now, value) for now, who, value, *_ in quotas if int(who) == worker]
    found = []

    def at(now: float) -> float:
        return next((value for t, value in reversed(steps) if t <= now), 0.0)

    for k in range(1, int(seconds / half_period + 1e-9)):
        change = k * half_period
        before, after = at(change), at(change + half_period)
        half = (before + after) / 2
        rises = k % 2 == 1
        gone = [t for t, value in steps if change < t <= change + half_period and (value >= half if rises else value <= half)]
        right = after > before if rises else after < before
        found.append(("begin" if rises else "end", gone[0] - change if gone and right else float("inf")))
    return found


def by_phase(samples: list[Sample], what: str, worker: int, half_period: float) -> tuple[list[float], list[float]]:
    """Return values of a worker noted while the hog was off, and while it was on, without the first quarter of each phase."""
    found: tuple[list[float], list[float]] = ([], [])
    for sample in samples:
        for now, value in sample.extra[what][worker]:
            if now > 0 and now % half_period > half_period / 4:
                found[is_on(now, 0.0, half_period)].append(value - now if what == "spans" else value)
    return found


def verdict(what: str, value: float, met: bool, target: str, n_quiet: int) -> None:
    """Say plainly whether a target is met, or that the machine was too busy to tell."""
    word = "unsure" if n_quiet < ENOUGH_QUIET else "met   " if met else "MISSED"
    print(f"{word} {what}: {value:.3f} in {n_quiet} quiet rounds, target {target}", flush=True)


def quiet_gains(rounds: Rounds, name: str, base: str) -> tuple[list[float], int]:
    """Return work done over that of `base`, of the quiet rounds (of all, if none was), and how many were quiet."""
    quiet = rounds.ratios(base, name, quiet=True)
    return quiet or rounds.ratios(base, name), len(quiet)


def table(rounds: Rounds, bench: Bench) -> None:
    """Print what was done in equal time, and where."""
    print(
        f"{'policy':14s} {'blocks/s':>9s} {'over bsp':>9s} {'lowest':>7s} {'highest':>7s} {'quiet':>6s} {'blocks by worker':>17s} {'hog':>5s} {'others':>7s}"
    )
    for name, samples in rounds.samples.items():
        gains, quiet = rounds.ratios("bsp", name), rounds.ratios("bsp", name, quiet=True)
        blocks = "/".join(f"{median(s.extra['blocks'][worker] for s in samples):.0f}" for worker in range(2))
        print(
            f"{name:14s} {1 / rounds.median(name):9.1f} {median(gains):9.3f} {min(gains):7.3f} {max(gains):7.3f} {len(quiet):6d} "
            f"{blocks:>17s} {median(s.extra['hog'] for s in samples):5.2f} {rounds.others(name):7.2f}",
            flush=True,
        )
    print("hog: cores that the spinners had, of one core, in the mean of on and off; others: cores that anybody else had\n")
    print(f"{'length of a block (median, ms)':32s} {'hog off':>9s} {'hog on':>9s} {'ratio':>7s}")
    for name in ("asp", "adaptive:4:32"):
        for worker in range(2):
            off, on = (median(each) * 1e3 if each else float("nan") for each in by_phase(rounds.samples[name], "spans", worker, bench.half_period))
            hogged = ", hogged" if worker == bench.hogged else ""
            print(f"{f'{name}, worker {worker}{hogged}':32s} {off:9.2f} {on:9.2f} {on / off:7.2f}", flush=True)


def watched(rounds: Rounds, bench: Bench, judges: bool) -> None:
    """Print how soon quotas follow the hog, and which loads were measured, in the quiet rounds (in all, if none was)."""
    other = 1 - bench.hogged
    for name in (name for name in rounds.samples if name.startswith("adaptive")):
        quiet = [s for s in rounds.samples[name] if s.others < QUIET]
        samples, n_quiet = quiet or rounds.samples[name], len(quiet)
        found = [move for s in samples for move in moves(s.extra["quotas"], other, bench.half_period, bench.job.seconds)]
        for word in ("begin", "end"):
            periods = sorted(seconds / PERIOD_SECONDS for which, seconds in found if which == word)
            if not periods:
                continue
            within = sum(p <= WITHIN_PERIODS for p in periods) / len(periods)
            middle = median(periods)
            print(
                f"{name}: the quota of worker {other} has gone half of its way {middle:.1f} periods after a hog's {word} (median; longest {periods[-1]:.1f})"
            )
            if judges:
                what = f"{name}: share of a hog's {word}s followed within {WITHIN_PERIODS} periods"
                verdict(what, within, within >= FOLLOWED, f">= {FOLLOWED:.0%}", n_quiet)
        for worker in range(2):
            off, on = by_phase(samples, "loads", worker, bench.half_period)
            if off and on:
                text = f"{name}: load that worker {worker} measures: hog off {np.mean(off):.3f} (95% below {np.quantile(off, 0.95):.3f})"
                print(f"{text}, hog on {np.mean(on):.3f} (95% below {np.quantile(on, 0.95):.3f})", flush=True)
                if judges and worker == other:
                    own = float(np.mean(off + on))
                    verdict(f"{name}: load of the worker that nobody hogs, mean", own, own < OWN_LOAD, f"< {OWN_LOAD}", n_quiet)


def main() -> None:
    """Measure on two pinned ranks (Collective)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="of each measurement")
    parser.add_argument("--half-period", type=float, required=True, help="seconds for which the hog is off, and on")
    parser.add_argument("--spinners", type=int, default=3, help="processes that share the hogged core with the worker")
    parser.add_argument("--hogged", type=int, choices=(0, 1), default=0, help="the worker whose core is hogged")
    parser.add_argument("--patience", type=float, required=True, help="seconds to wait for quiet moments, in all")
    parser.add_argument("--hidden", required=True)
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--share", type=int, required=True, help="samples of a block")
    options = parser.parse_args()
    abort.install(world())  # one rank's failure ends both
    comm = CountedComm()
    assert comm.size in (2, 3), f"needs 2 or 3 ranks, this is {comm.size}"
    cores = comm.bcast(sorted(os.sched_getaffinity(0)))
    if (worker := comm.rank - (comm.size - 2)) >= 0:
        os.sched_setaffinity(0, {cores[worker]})
    with tempfile.TemporaryDirectory() as folder:
        path = comm.bcast(str(Path(folder, "data.npz")))
        if comm.rank == 0:
            random = np.random.default_rng(0)
            np.savez(path, x=random.random((options.share * 20, 784), np.float32), y=random.integers(0, 10, options.share * 20))
        hidden = tuple(int(width) for width in options.hidden.split(","))
        job = Job(
            data=path,
            hold_out=0.0,
            scale="none",
            hidden=hidden,
            backend=options.backend,
            lr=0.001,
            assign="dynamic",
            seconds=options.seconds,
            batch=2 * options.share,
            servers="colocated" if comm.size == 2 else "1",
        )
        bench = Bench(job.checked(), comm, cores, options.hogged, options.spinners, options.half_period)
        bench.work("bsp", hog=False)  # touches memory, and wakes the clock of the CPU
        patience = Patience(comm, options.patience)
        rounds = interleave({sync: (lambda sync=sync: patience.measure(lambda: bench.work(sync))) for sync in POLICIES}, options.rounds)  # type: ignore[misc]
        comm.Barrier()
    if comm.rank == 0:
        print(
            f"\nc) a busy neighbour: 2 pinned workers, {'a server beside each' if comm.size == 2 else 'and a rank that serves'}, blocks of {options.share} samples of "
            f"784-{options.hidden.replace(',', '-')}-10, {options.spinners} spinners on the core of worker {options.hogged}, {options.half_period:g} s off and on "
            f"by turns, {options.rounds} rounds of {options.seconds:g} s"
        )
        table(rounds, bench)
        watched(rounds, bench, options.rounds > 1)
        for name in JUDGED if options.rounds > 1 else ():
            over, n = quiet_gains(rounds, name, "ssp:10")
            verdict(f"{name} over ssp:10 in work done", median(over), median(over) >= OVER_SSP, f">= {OVER_SSP}", n)
            gain, n = quiet_gains(rounds, name, "bsp")
            gains_of_asp, n_of_asp = quiet_gains(rounds, "asp", "bsp")
            best = median(gains_of_asp)
            share = (median(gain) - 1) / (best - 1) if best > 1 else float("nan")
            verdict(f"{name}: share of asp's gain over bsp", share, share >= SHARE_OF_ASP, f">= {SHARE_OF_ASP:.0%}", min(n, n_of_asp))
    comm.free()


if __name__ == "__main__":
    main()
