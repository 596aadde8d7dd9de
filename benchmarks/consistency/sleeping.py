"""Measure policies whose computes are sleeps, on MPI and on virtual clocks: `mpirun -n WORKERS+1 python sleeping.py jitter|straggler|simulated ...`.

Rank 0 serves (and coordinates, where the policy has a gate), each other rank is a worker. A worker reads a table of 64 numbers, sleeps as
long as the draw of (seed, worker, compute) says, and pushes 64 numbers: what is left of a run is the waiting that its policy makes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpidml_kernels import backend

from benchmarks.consistency.quiet import Patience
from benchmarks.machine import Watch
from benchmarks.rounds import QUIET, Rounds, Sample, interleave
from mpidml.core import rng
from mpidml.core.buffers import Buffers
from mpidml.core.partition import shards
from mpidml.core.role import Lease, Role
from mpidml.ps.client import Client
from mpidml.ps.coordinator import Coordinator
from mpidml.ps.shard import Shard
from mpidml.ps.store import Store
from mpidml.ps.table import TableSpec, n_versions
from mpidml.ps.task import Push, Read, Turn
from mpidml.ps.worker import Worker
from mpidml.runtime import abort
from mpidml.runtime.bell import Bell
from mpidml.runtime.comm import CountedComm, world
from mpidml.runtime.driver import Driver
from mpidml.runtime.memory import WindowBuffers
from mpidml.sim import virtual
from mpidml.sync.base import make_policy

N_NUMBERS = 64
N_SKIPPED = 10  # clocks in which memory is first touched and a lead builds up
FIT_CLOCKS = 200
SPIN_SECONDS = 200e-6
ENOUGH_QUIET = 3  # rounds, for a verdict
POLICIES = ("bsp", "ssp:3", "dssp:1:8", "asp", "quorum", "adaptive:1:8")
JITTER_GAIN, STRAGGLER_GAP, SIMULATED_GAP = 1.2, 0.05, 0.10
End = tuple[float, int, bool]
"""One compute that has ended: when, whose it was, whether its gradient counts."""


class Sleeper:
    """A worker's program: read all numbers, sleep for `seconds[step]` (None: time is virtual), push all numbers."""

    def __init__(self, seconds: Sequence[float] | None) -> None:
        self.seconds = seconds
        self.out = [np.zeros(N_NUMBERS) for _ in range(2)]
        self.pushed = (Push(0, Lease(np.zeros(N_NUMBERS))),)

    def reads(self, step: int) -> Sequence[Read]:
        """Read everything, into one of two arrays in turn."""
        return [Read(0, self.out[step % 2])]

    last_reads = reads

    def compute(self, turn: Turn, report: Any) -> tuple[Sequence[Push], tuple[float, ...]]:
        """Sleep, and spin for the last moment, since the kernel wakes nobody on time."""
        if self.seconds is not None:
            end = time.perf_counter() + self.seconds[turn.step % len(self.seconds)]
            time.sleep(max(end - time.perf_counter() - SPIN_SECONDS, 0.0))
            while time.perf_counter() < end:
                pass
        return self.pushed, ()

    def early(self) -> None:
        """Push nothing before the end."""

    def finish(self, turn: Turn, report: Any) -> None:
        """Use nothing."""


def make_role(number: int, sync: str, n_clocks: int, seconds: Sequence[Sequence[float]], sleeps: bool, buffers: Buffers) -> Role:
    """Make the server (0), a worker (1 ... n) or the coordinator (n + 1)."""
    policy, n_workers = make_policy(sync), len(seconds)
    cut, by_clock = shards(N_NUMBERS, 1), policy.commit == "clock"
    roles = range(1, n_workers + 1)
    if number == 0:
        copies = n_versions(False, by_clock, policy.bound, False)
        store = Store([np.zeros(N_NUMBERS) for _ in range(copies)], 0, 1, backend("numpy"))
        return Shard("numbers", roles, policy, store, buffers.allocate)
    if number == roles.stop:
        return Coordinator(roles, n_clocks, False, policy.gate(n_workers, True))
    client = Client([TableSpec("numbers", N_NUMBERS, 1, np.dtype(np.float64), cut, 0)], policy, by_clock)
    task = Sleeper(seconds[number - 1] if sleeps else None)
    return Worker(client, task, n_clocks, index=number - 1, n_workers=n_workers, coordinator=roles.stop if policy.gate_at else -1)


def n_roles(sync: str, n_workers: int) -> int:
    """Return how many roles a run has."""
    return 1 + n_workers + bool(make_policy(sync).gate_at)


def seconds_a_clock(ends: Sequence[End], n_workers: int) -> tuple[float, float]:
    """Return the seconds a clock, and the share of computes whose gradient was dropped.

    A clock is one gradient that counts of each worker, so all policies are asked the same: what counts from the time at which the first worker
    has ended N_SKIPPED clocks to the time at which the first has ended its last, over that time. A lead that stays adds nothing.
    """
    of = [sorted(now for now, who, _ in ends if who == worker) for worker in range(n_workers)]
    begin, end = min(each[min(N_SKIPPED, len(each) // 4)] for each in of), min(each[-1] for each in of)
    counted = [counts for now, _, counts in ends if begin < now <= end]
    return (end - begin) * n_workers / sum(counted), 1 - sum(counted) / len(counted)


def on_mpi(comm: CountedComm, sync: str, n_clocks: int, seconds: Sequence[Sequence[float]]) -> Sample:
    """Run the roles on the ranks and return seconds a clock (Collective on comm)."""
    counted, n_workers = CountedComm(comm.mpi), len(seconds)
    buffers = WindowBuffers(counted.host, 1 << 16)
    bell = Bell(counted.host)
    rank_of = [0, *range(1, n_workers + 1), 0][: n_roles(sync, n_workers)]
    roles = {i: make_role(i, sync, n_clocks, seconds, True, buffers) for i, rank in enumerate(rank_of) if rank == counted.rank}
    ends: list[tuple[float, int, bool]] = []

    def record(role: int, now: float, name: str, value: tuple[float, ...]) -> None:
        if name == "clock":
            ends.append((now, role - 1, bool(value[2])))

    driver = Driver(counted, roles, rank_of, buffers, bell, record)
    counted.Barrier()
    start = counted.bcast(time.perf_counter())  # one clock for all ranks of a host
    with Watch() as watch:
        driver.run()
    mine = roles.get(counted.rank)
    slept = sum(seconds[counted.rank - 1][i % len(seconds[counted.rank - 1])] for i in range(mine.step)) if isinstance(mine, Worker) else 0.0
    found = counted.allgather((ends, watch.cpu_seconds, driver.compute_seconds, slept))
    counted.Barrier()
    bell.close()
    buffers.free()
    counted.free()
    per_clock, dropped = seconds_a_clock([(now - start, who, counts) for f in found for now, who, counts in f[0]], n_workers)
    late = sum(f[2] for f in found) / sum(f[3] for f in found) - 1
    return Sample(per_clock, watch.others(sum(f[1] for f in found)), {"dropped": dropped, "late": late})


class Costs(NamedTuple):
    """What a clock takes of a worker besides its compute, and a message from its sending until a rank has taken it, in seconds."""

    driving: float
    latency: float


def fit(comm: CountedComm, mean_seconds: float, patience: Patience) -> Costs:
    """Return the costs of one worker beside one server (Collective on comm).

    Under asp its read has been asked for a clock before, so a clock is its sleep and what driver and roles take; under bsp it is two messages more, one
    after the other: the push, which asks, and the answer.
    """
    pair = comm.split(0 if comm.rank < 2 else -1)
    found = Costs(0.0, 0.0)
    if pair is not None:
        patient = patience.over(pair)
        asp, bsp = (patient.measure(lambda sync=sync: on_mpi(pair, sync, FIT_CLOCKS, [[mean_seconds]])).seconds for sync in ("asp", "bsp"))  # type: ignore[misc]
        found = Costs(max(asp - mean_seconds, 0.0), max(bsp - asp, 0.0) / 2)
        pair.free()
    return Costs(*comm.bcast(found))


def on_virtual_clocks(sync: str, n_clocks: int, seconds: Sequence[Sequence[float]], costs: Costs) -> float:
    """Run the same roles on virtual clocks and return seconds a clock."""
    roles = [make_role(i, sync, n_clocks, seconds, False, Buffers()) for i in range(n_roles(sync, len(seconds)))]

    def compute(role: int, step: int, now: float) -> float:
        return seconds[role - 1][step % len(seconds[role - 1])] + costs.driving

    result = virtual.run(roles, compute, costs.latency, reports=False)
    ends = [(now, role - 1, bool(value[2])) for now, role, name, value in result.records if name == "clock"]
    return seconds_a_clock(ends, len(seconds))[0]


def jittered(n_workers: int, n_clocks: int, mean_seconds: float, round_number: int) -> list[list[float]]:
    """Draw the length of each compute, exponentially distributed: a function of (round, worker) alone, the same for every policy."""
    return [list(rng.stream(round_number, "sleep", worker).exponential(mean_seconds, 2 * n_clocks)) for worker in range(n_workers)]


def measured(comm: CountedComm, n_rounds: int, n_clocks: int, draws: Callable[[int], list[list[float]]], patience: Patience) -> Rounds:
    """Measure each policy once a round, all with the draws of that round (Collective on comm)."""
    done = dict.fromkeys(POLICIES, 0)

    def one(sync: str) -> Sample:
        done[sync] += 1
        return patience.measure(lambda: on_mpi(comm, sync, n_clocks, draws(done[sync])))

    return interleave({sync: (lambda sync=sync: one(sync)) for sync in POLICIES}, n_rounds)  # type: ignore[misc]


def table(rounds: Rounds) -> None:
    """Print one line a policy, its gain over bsp taken round by round."""
    print(
        f"{'policy':14s} {'clocks/s':>9s} {'over bsp':>9s} {'lowest':>7s} {'highest':>7s} {'quiet':>6s} {'dropped':>8s} {'sleeps late':>12s} {'others':>7s}"
    )
    for name in rounds.samples:
        gains, quiet = rounds.ratios("bsp", name), rounds.ratios("bsp", name, quiet=True)
        print(
            f"{name:14s} {1 / rounds.median(name):9.1f} {median(gains):9.3f} {min(gains):7.3f} {max(gains):7.3f} {len(quiet):6d} "
            f"{rounds.extra(name, 'dropped'):8.1%} {rounds.extra(name, 'late'):12.1%} {rounds.others(name):7.2f}",
            flush=True,
        )


def verdict(what: str, value: float, met: bool, target: str, n_quiet: int) -> None:
    """Say plainly whether a target is met, or that the machine was too busy to tell."""
    word = "unsure" if n_quiet < ENOUGH_QUIET else "met   " if met else "MISSED"
    print(f"{word} {what}: {value:.3f} in {n_quiet} quiet rounds, target {target}", flush=True)


def gain(rounds: Rounds, name: str) -> tuple[float, int]:
    """Return the median over the quiet rounds (over all, if none was) of clocks/s over those of bsp, and how many were quiet."""
    quiet = rounds.ratios("bsp", name, quiet=True)
    return median(quiet or rounds.ratios("bsp", name)), len(quiet)


def jitter(comm: CountedComm, n_rounds: int, n_clocks: int, mean_seconds: float, patience: Patience) -> None:
    """Compare the policies where every worker is as fast as any other in the mean, but never at the same time."""
    n_workers = comm.size - 1
    rounds = measured(comm, n_rounds, n_clocks, lambda r: jittered(n_workers, n_clocks, mean_seconds, r), patience)
    if comm.rank:
        return
    print(f"\na) transient jitter: {n_workers} workers, exponential sleeps of {mean_seconds * 1e3:g} ms, {n_rounds} rounds of {n_clocks} clocks")
    table(rounds)
    if n_rounds > 1:
        value, n_quiet = gain(rounds, "ssp:3")
        verdict("ssp:3 over bsp in clocks/s under jitter", value, value >= JITTER_GAIN, f">= {JITTER_GAIN}", n_quiet)


def straggler(comm: CountedComm, n_rounds: int, n_clocks: int, mean_seconds: float, patience: Patience) -> None:
    """Compare the policies where worker 0 takes twice as long for ever."""
    n_workers = comm.size - 1
    lengths = [[mean_seconds * (2.0 if worker == 0 else 1.0)] for worker in range(n_workers)]
    rounds = measured(comm, n_rounds, n_clocks, lambda r: lengths, patience)
    if comm.rank:
        return
    print(
        f"\nb) permanent straggler: {n_workers} workers sleep {mean_seconds * 1e3:g} ms, worker 0 twice as long; {n_rounds} rounds of {n_clocks} clocks"
    )
    table(rounds)
    if n_rounds > 1:
        value, n_quiet = gain(rounds, "ssp:3")
        verdict("ssp:3 over bsp in clocks/s beside a straggler", value, abs(value - 1) <= STRAGGLER_GAP, f"1 within {STRAGGLER_GAP:.0%}", n_quiet)


def simulated(comm: CountedComm, n_rounds: int, n_clocks: int, mean_seconds: float, patience: Patience) -> None:
    """Hold what was measured against the same roles with the same draws on virtual clocks."""
    n_workers = comm.size - 1
    costs = fit(comm, mean_seconds, patience)
    rounds = measured(comm, n_rounds, n_clocks, lambda r: jittered(n_workers, n_clocks, mean_seconds, r), patience)
    if comm.rank:
        return
    print(
        f"\nd) measured beside simulated: {n_workers} workers, exponential sleeps of {mean_seconds * 1e3:g} ms, {n_rounds} rounds of {n_clocks} clocks, "
        f"{costs.latency * 1e6:.0f} us a message and {costs.driving * 1e6:.0f} us a clock besides on virtual clocks, fitted to one worker"
    )
    print(f"{'policy':14s} {'measured':>9s} {'simulated':>10s} {'ratio':>7s} {'lowest':>7s} {'highest':>7s} {'quiet':>6s}   clocks/s")
    worst, n_quiet = 1.0, n_rounds
    for name, samples in rounds.samples.items():
        virtually = [on_virtual_clocks(name, n_clocks, jittered(n_workers, n_clocks, mean_seconds, r), costs) for r in range(1, n_rounds + 1)]
        ratios = [v / s.seconds for v, s in zip(virtually, samples, strict=True)]
        quiet = [ratio for ratio, s in zip(ratios, samples, strict=True) if s.others < QUIET]
        ratio = median(quiet or ratios)
        worst, n_quiet = max(worst, ratio, key=lambda r: abs(r - 1)), min(n_quiet, len(quiet))
        print(
            f"{name:14s} {1 / rounds.median(name):9.1f} {1 / median(virtually):10.1f} {ratio:7.3f} {min(ratios):7.3f} {max(ratios):7.3f} {len(quiet):6d}",
            flush=True,
        )
    if n_rounds > 1:
        target = f"1 within {SIMULATED_GAP:.0%}"
        verdict(f"measured over simulated clocks/s, {n_workers} workers, the worst policy", worst, abs(worst - 1) <= SIMULATED_GAP, target, n_quiet)


def main() -> None:
    """Measure what is asked for (Collective on all ranks)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--clocks", type=int, required=True)
    parser.add_argument("--mean", type=float, required=True, help="seconds of a sleep")
    parser.add_argument("--patience", type=float, required=True, help="seconds to wait for quiet moments, in all")
    parser.add_argument("what", nargs="+", choices=("jitter", "straggler", "simulated"))
    options = parser.parse_args()
    abort.install(world())  # one rank's failure ends all
    comm = CountedComm()
    assert comm.size >= 3, f"needs a server and at least 2 workers, this is {comm.size} rank(s)"
    for name in options.what:
        patience = Patience(comm, options.patience)
        {"jitter": jitter, "straggler": straggler, "simulated": simulated}[name](comm, options.rounds, options.clocks, options.mean, patience)
    comm.Barrier()
    comm.free()


if __name__ == "__main__":
    main()
