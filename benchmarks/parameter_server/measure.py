"""Measure on the ranks what `run.py` starts: `mpirun -n 2 python measure.py dedicated|colocated|idle ...`; rank 0 prints the tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch
from benchmarks.rounds import Rounds, Sample, interleave
from mpidml.core.job import Job
from mpidml.core.role import END, NOTHING, Compute, Effects, Message, Stop, Waiting
from mpidml.data.sampler import Sampler
from mpidml.nn.models import build
from mpidml.ps.client import Client
from mpidml.runtime import abort
from mpidml.runtime.comm import CountedComm, world
from mpidml.runtime.dataset import Dataset, load
from mpidml.strategies.parameter_server import ParameterServer

N_SKIPPED = 10  # clocks in which memory is first touched
NAP_SECONDS = 2e-3
LOSS_TOLERANCE = 1e-3
ENOUGH_QUIET = 3  # rounds, for a verdict
ALONE, GIVEN, BOTH = "alone", "alone, without loading the batch", "both alone at once"
WINDOW, MPI_ONLY = {"transport": "auto"}, {"transport": "mpi"}
SSP, BSP = {"sync": "ssp:1"}, {"sync": "bsp"}
DEDICATED: dict[str, tuple[dict[str, str], float | None]] = {
    "SSP(1), window": (SSP | WINDOW, 0.05),
    "SSP(1), MPI": (SSP | MPI_ONLY, 0.20),
    "BSP, window": (BSP | WINDOW | {"early_push": "off"}, 0.30),
    "BSP, window, early push": (BSP | WINDOW | {"early_push": "on"}, 0.15),
    "BSP, MPI": (BSP | MPI_ONLY | {"early_push": "off"}, None),
    "BSP, MPI, early push": (BSP | MPI_ONLY | {"early_push": "on"}, 0.35),
}
"""One server beside one worker: what differs in the job, and the most it may cost over the worker alone."""
COLOCATED: dict[str, dict[str, str]] = {
    "SSP(1), in place": SSP | WINDOW,
    "BSP, in place": BSP | WINDOW | {"early_push": "off"},
    "BSP, in place, early push": BSP | WINDOW | {"early_push": "on"},
    "BSP, MPI, early push": BSP | MPI_ONLY | {"early_push": "on"},
}
SPEEDUP, EFFICIENCY, IDLE = 1.6, 0.88, 0.02


class Bench:
    """The data, and the worker alone, on each rank; every measurement is collective and returns the same sample on all ranks."""

    def __init__(self, job: Job, comm: CountedComm, share: int) -> None:
        self.job, self.comm, self.share = job, comm, share
        self.data: Dataset = load(job, comm)
        self.losses: dict[str, float] = {}

    def alone(self, ranks: tuple[int, ...], loads: bool = True) -> Sample:
        """Return seconds a step of gradient and momentum update on `ranks` at once (the slowest counts), while the others nap.

        `loads`: each step first gathers its rows of the batch, as a worker does; else it meets the first batch again and again.
        """
        job, data = self.job, self.data
        net = build("mlp", data.x.shape[1], data.n_outputs, job.hidden)
        w, g, v = net.init(job.seed), np.zeros(net.n_params, np.float32), np.zeros(net.n_params, np.float32)
        step, update = net.bind(self.share, w, g), net.backend.momentum_in_place
        batches = Sampler(len(data.x), self.share, 1, job.seed)
        loss = 0.0

        def go(first: int, last: int) -> None:
            nonlocal loss
            for clock in range(first, last):
                if loads or clock == 0:
                    rows = batches.indices(clock, 0)
                    data.x.take(rows, 0, step.x, "clip")
                    data.y.take(rows, 0, step.y, "clip")
                loss = step.run(1.0 / self.share)
                update(w, v, g, job.lr, 0.9)

        mine = self.comm.rank in ranks
        if mine:
            go(0, N_SKIPPED)
        with self._together() as watch:
            start = time.perf_counter()
            if mine:
                go(N_SKIPPED, job.steps)
            seconds = time.perf_counter() - start
            self._nap()
        found = self.comm.allgather((seconds, watch.cpu_seconds, loss / self.share))
        self.losses[ALONE] = found[ranks[0]][2]
        slowest = max(found[rank][0] for rank in ranks)
        others = watch.others(sum(f[1] for f in found))
        return Sample(slowest / (job.steps - N_SKIPPED), others, {"cpu": [f[1] / (job.steps - N_SKIPPED) * 1e3 for f in found]})

    def trained(self, name: str, changes: dict[str, str], servers: str, n_workers: int) -> Sample:
        """Return seconds a clock of a job driven as `mpidml train` drives it, from the end of one clock of all workers to that of the last."""
        job = replace(self.job, servers=servers, batch=self.share * n_workers, **changes).checked()  # type: ignore[arg-type]
        comm = CountedComm(self.comm.mpi)  # its windows go with it
        net = build("mlp", self.data.x.shape[1], self.data.n_outputs, job.hidden)
        strategy = ParameterServer(job, comm)
        ends: list[tuple[int, float, float, float]] = []

        def record(role: int, now: float, name: str, value: tuple[float, ...]) -> None:
            if name == "clock":
                ends.append((int(value[0]), now, value[4], value[5]))  # clock; loss and samples

        strategy.prepare(net, self.data, record, lambda now: None, None)
        strategy.driver.roles = strategy.roles()
        with self._together() as watch:
            strategy.driver.run()
            self._nap()
        driver = strategy.driver
        spent = {"compute": driver.compute_seconds, "serve": driver.serve_seconds, "wait": driver.wait_seconds}
        last = ends[-1][2:] if ends else (0.0, 0.0)
        found = comm.allgather(({clock: now for clock, now, _, _ in ends}, watch.cpu_seconds, last, spent))
        strategy.free()
        comm.free()
        start, end = (max(f[0][clock] for f in found if f[0]) for clock in (N_SKIPPED - 1, job.steps - 1))
        self.losses[name] = sum(f[2][0] for f in found) / max(sum(f[2][1] for f in found), 1.0)
        parts = {what: [f[3][what] / job.steps * 1e3 for f in found] for what in spent}
        extra = {"cpu": [f[1] / job.steps * 1e3 for f in found], **parts}
        return Sample((end - start) / (job.steps - N_SKIPPED), watch.others(sum(f[1] for f in found)), extra)

    def _together(self) -> Watch:
        self.comm.Barrier()
        return Watch()

    def _nap(self) -> None:
        """Wait for all ranks without spinning."""
        request = self.comm.mpi.Ibarrier()
        while not request.Test():
            time.sleep(NAP_SECONDS)


class Asker:
    """A role that only asks: pull, sleep, pull again; how long each answer took is in `seconds`."""

    def __init__(self, client: Client, pause_seconds: float, n: int) -> None:
        self.client, self.pause_seconds, self.n = client, pause_seconds, n
        self.seconds: list[float] = []
        self.asked_at = 0.0

    def start(self, now: float) -> Effects:
        """Ask for the first time."""
        return self._ask(now)

    def _ask(self, now: float) -> Effects:
        self.asked_at = time.perf_counter()
        return self.client.pull(now, 0, clock=0)[1]

    def handle(self, now: float, source: int, message: Message) -> Effects:
        """Note how long the answer took, and sleep; stop when every shard has taken its leave."""
        if message.kind == END:
            return (Stop(),) if self.client.farewell(source) else NOTHING
        self.client.answer(now, source, message)
        if self.client.tickets:
            return NOTHING
        self.seconds.append(time.perf_counter() - self.asked_at)
        return (Compute(lambda turn, report: time.sleep(self.pause_seconds), None, 0),)

    def done(self, now: float, result: Any) -> Effects:
        """Ask again, or leave."""
        return self._ask(now) if len(self.seconds) < self.n else self.client.end(now)

    def part(self, now: float, lo: int, hi: int) -> Effects:
        """Nothing is computed here."""
        return NOTHING

    def landing(self, source: int, message: Message) -> None:
        """No answer brings data: the table is read in place."""

    def waiting(self, now: float) -> list[Waiting]:
        """Report the question that is open."""
        return self.client.waiting(now)

    def state(self) -> dict[str, Any]:
        """Keep nothing."""
        return {}


def idle(bench: Bench, pause_seconds: float, n: int) -> tuple[float, list[float], float]:
    """Return the dedicated server's share of a core while it is asked every `pause_seconds`, the times to answer, and others' share."""
    comm = CountedComm(bench.comm.mpi)
    job = replace(bench.job, servers="1", batch=bench.share, sync="ssp:1")
    strategy = ParameterServer(job, comm)
    net = build("mlp", bench.data.x.shape[1], bench.data.n_outputs, job.hidden)
    strategy.prepare(net, bench.data, lambda *_: None, lambda now: None, None)
    strategy.driver.roles = strategy.roles()
    askers = [Asker(worker.client, pause_seconds, n) for worker in strategy.workers.values()]
    if askers:
        strategy.driver.roles = dict.fromkeys(strategy.driver.roles, askers[0])
    with bench._together() as watch:
        strategy.driver.run()
    found = comm.allgather((watch.cpu_seconds, watch.seconds, askers[0].seconds if askers else []))
    strategy.free()
    comm.free()
    return found[0][0] / found[0][1], [s for f in found for s in f[2]], watch.others(sum(f[0] for f in found))


def table(rounds: Rounds, bench: Bench) -> None:
    """Print one line a variant; cost: against ALONE of the same round; then ms a clock by rank: CPU time, and where the wall time went."""
    for name, samples in rounds.samples.items():
        cost, quiet = rounds.ratios(name, ALONE), rounds.ratios(name, ALONE, quiet=True)
        text = f"{name:34s} median {rounds.median(name) * 1e3:7.3f} ms  least {rounds.least(name) * 1e3:7.3f}  cost {median(cost) - 1:+7.1%}"
        text += f"  by the least {rounds.least(name) / rounds.least(ALONE) - 1:+7.1%}"
        text += f"  quiet({len(quiet)}) {f'{median(quiet) - 1:+.1%}' if quiet else '-':>7s}  others {rounds.others(name):.2f}"

        def by_rank(what: str, samples: list[Sample] = samples) -> str:
            return "/".join(f"{median(s.extra[what][r] for s in samples):.2f}" for r in range(bench.comm.size))

        text += f"  CPU {by_rank('cpu')}"
        if "compute" in samples[0].extra:
            text += "".join(f"  {what} {by_rank(what)}" for what in ("compute", "serve", "wait"))
            text += f" ms  loss {bench.losses[name]:.4f}"
        print(text, flush=True)


def verdict(what: str, value: float, target: float, at_least: bool, shown: str, n_quiet: int) -> None:
    """Say plainly whether a target is met, or that the machine was too busy to tell."""
    word = "unsure" if n_quiet < ENOUGH_QUIET else "met   " if (value >= target if at_least else value <= target) else "MISSED"
    print(f"{word} {what}: {value:{shown}} in {n_quiet} quiet rounds, target {'>=' if at_least else '<='} {target:{shown}}", flush=True)


def quiet_ratio(rounds: Rounds, name: str, base: str) -> tuple[float, int]:
    """Return the median ratio of the quiet rounds (of all, if none was), and how many there were."""
    quiet = rounds.ratios(name, base, quiet=True)
    return median(quiet) if quiet else rounds.ratio(name, base), len(quiet)


def dedicated(bench: Bench, n_rounds: int) -> None:
    """Compare one server beside one worker (rank 1) with that worker alone."""
    variants: dict[str, Callable[[], Sample]] = {
        ALONE: lambda: bench.alone((1,)),
        GIVEN: lambda: bench.alone((1,), loads=False),
        BOTH: lambda: bench.alone((0, 1)),
    }
    for name, (changes, _) in DEDICATED.items():
        variants[name] = lambda name=name, changes=changes: bench.trained(name, changes, "1", 1)  # type: ignore[misc]
    rounds = interleave(variants, n_rounds)
    if bench.comm.rank:
        return
    print(f"\none server (rank 0) and one worker (rank 1): {n_rounds} rounds of {bench.job.steps} clocks of {bench.share} samples")
    table(rounds, bench)
    for name, (changes, target) in DEDICATED.items():
        if changes["sync"] == "bsp":
            gap = abs(bench.losses[name] / bench.losses[ALONE] - 1)
            assert gap < LOSS_TOLERANCE, f"{name}: its last loss differs by {gap:.1e} from that of the worker alone; the two did not do the same work"
        if target is not None and n_rounds > 1:
            ratio, n_quiet = quiet_ratio(rounds, name, ALONE)
            verdict(f"{name}: cost over the worker alone", ratio - 1, target, False, ".1%", n_quiet)


def colocated(bench: Bench, n_rounds: int) -> None:
    """Compare two ranks, each a server and a worker, with one rank, and with two that do not communicate."""
    variants: dict[str, Callable[[], Sample]] = {ALONE: lambda: bench.alone((0,)), BOTH: lambda: bench.alone((0, 1))}
    for name, changes in COLOCATED.items():
        variants[name] = lambda name=name, changes=changes: bench.trained(name, changes, "colocated", 2)  # type: ignore[misc]
    rounds = interleave(variants, n_rounds)
    if bench.comm.rank:
        return
    print(f"\ntwo ranks, each a server and a worker: {n_rounds} rounds of {bench.job.steps} clocks of 2 x {bench.share} samples")
    table(rounds, bench)
    for name in [BOTH, *COLOCATED]:
        one, two = 2 / rounds.ratio(name, ALONE), 1 / rounds.ratio(name, BOTH)
        best = rounds.least(ALONE) / rounds.least(name), rounds.least(BOTH) / rounds.least(name)
        print(f"{name:34s} samples/s x{one:.2f} of one rank, {two:.1%} of two without communication; by the least: x{2 * best[0]:.2f}, {best[1]:.1%}")
    for name in list(COLOCATED)[:2] if n_rounds > 1 else ():
        (one, n_one), (two, n_two) = quiet_ratio(rounds, name, ALONE), quiet_ratio(rounds, name, BOTH)
        verdict(f"{name}: samples/s over one rank", 2 / one, SPEEDUP, True, ".2f", n_one)
        verdict(f"{name}: share of two ranks without communication", 1 / two, EFFICIENCY, True, ".0%", n_two)


def idling(bench: Bench, n_rounds: int) -> None:
    """Measure what a server takes of a core while it has almost nothing to do, and how soon it answers."""
    for pause_seconds in (0.01, 0.1):
        n = max(3, min(100, int(1.0 / pause_seconds))) if n_rounds > 1 else 3
        found = [idle(bench, pause_seconds, n) for _ in range(max(1, n_rounds // 3))]
        if bench.comm.rank:
            continue
        seconds = sorted(s for _, answers, _ in found for s in answers)
        share = median(f[0] for f in found)
        if pause_seconds == 0.01:
            print(f"\na server asked now and then: {len(found)} rounds of {n} questions")
        print(
            f"asked every {pause_seconds * 1e3:.0f} ms: server takes {share:.2%} of a core; pull answered in median {median(seconds) * 1e6:.0f} us, "
            f"95% within {seconds[int(0.95 * len(seconds))] * 1e6:.0f} us; others {median(f[2] for f in found):.2f} cores"
        )
        if pause_seconds == 0.1 and n_rounds > 1:
            print(f"{'met   ' if share <= IDLE else 'MISSED'} idle server's share of a core: {share:.1%}, target <= {IDLE:.1%}", flush=True)


def main() -> None:
    """Measure what is asked for (Collective on all ranks)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--clocks", type=int, required=True)
    parser.add_argument("--hidden", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--share", type=int, required=True, help="samples a worker takes each clock")
    parser.add_argument("what", nargs="+", choices=("dedicated", "colocated", "idle"))
    options = parser.parse_args()
    abort.install(world())  # one rank's failure ends both
    comm = CountedComm()
    assert comm.size == 2, f"needs 2 ranks, this is {comm.size}"
    with tempfile.TemporaryDirectory() as folder:
        path = comm.bcast(str(Path(folder, "data.npz")))
        if comm.rank == 0:
            random = np.random.default_rng(0)
            np.savez(path, x=random.random((options.rows, 784), np.float32), y=random.integers(0, 10, options.rows))
        hidden = tuple(int(width) for width in options.hidden.split(","))
        job = Job(data=path, hold_out=0.0, scale="none", hidden=hidden, tune=False, lr=0.01, steps=options.clocks + N_SKIPPED, batch=options.share)
        bench = Bench(job.checked(), comm, options.share)
        for name in options.what:
            {"dedicated": dedicated, "colocated": colocated, "idle": idling}[name](bench, options.rounds)
        comm.Barrier()
    comm.free()


if __name__ == "__main__":
    main()
