"""Run one job under several policies, strategies or settings, one after the other on the same ranks, and put what each took into one table.

    one process      the same job on rank 0 alone; the other ranks sleep
    variant 1 ...    the whole world, same initial weights and order of samples; a folder of its own, as `train` writes it
    -> compare.json, compare.png, config.toml
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.target import parse_target
from mpidml.core.variants import ONE_PROCESS, Variant, alone, expand
from mpidml.runtime import comparison, device, events, sparse_rows
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import check_target, load
from mpidml.runtime.net import build_net
from mpidml.runtime.outputs import RunFolder, default_out, to_toml
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.summary import say
from mpidml.strategies.base import train

WARM_UP_CLOCKS = 30


def compare(values: Mapping[str, Any], comm: CountedComm | None = None, quiet: bool = False, write: bool = True) -> list[dict[str, Any]]:
    """Run every variant that `values` mean (names of `Job`'s fields -> a value or a list) and return the rows of compare.json (Collective on comm).

    Each run ends at `target` or `seconds`, else with its epochs. UserError for anything that cannot be, before any run.
    """
    with given_or_all(comm) as ranks:
        return _compare(values, ranks, quiet, write)


def _compare(values: Mapping[str, Any], comm: CountedComm, quiet: bool, write: bool) -> list[dict[str, Any]]:
    variants = agree(comm, lambda: expand(values, "compare"))
    agree(comm, lambda: _check(variants, comm, write))
    leads = comm.rank == 0
    _check_data([job for _, job in variants], comm)
    folder = agree(comm, lambda: RunFolder.prepare(variants[0].job.out or default_out(datetime.now())) if leads and write else None)
    agree(comm, lambda: folder.claim(_config(values)) if folder is not None else None)
    entries, curves = [], []
    speak = say if leads and not quiet else lambda text: None
    first = variants[0].job
    target = parse_target(first.target, first.looks_at)
    if target is None and not first.seconds:
        speak("no --target or --seconds: each run ends with its epochs, so under --assign static each policy ends with its slowest worker")
    for wanted in dict.fromkeys(job.device for _, job in variants):
        _warm_up(first.with_values({"device": wanted}, "warm-up"), comm)
    taken: dict[str, int] = {}
    for number, (name, job) in enumerate([Variant(ONE_PROCESS, alone(variants[0].job)), *variants]):
        if leads:
            speak(f"{number + 1}/{len(variants) + 1}  {name}" + ("" if number else " (rank 0 alone)" if comm.size > 1 else ""))
        out = "" if folder is None else str(folder.path / comparison.folder_name(name, taken))
        found = _run(job.with_values({"out": out}, "compare") if write else job, comm, quiet, write, just_one=number == 0)
        if found is not None:
            entries.append(comparison.entry(name, *found, target))
            curves.append(found[1])
            if folder is not None:
                folder.write_json("compare.json", entries)  # what is known so far, should a later run fail
    if leads:
        comparison.tell(folder, entries, curves, target, speak)
    result: list[dict[str, Any]] = comm.bcast(entries)
    return result


def _run(job: Any, comm: CountedComm, quiet: bool, write: bool, just_one: bool) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Run one job on all ranks, or on rank 0 while the others sleep; return its summary and metrics on rank 0."""
    kept: dict[str, Any] = {}
    part = comm.watched("split", comm.mpi.Split, 0 if comm.rank == 0 or not just_one else 1, comm.rank)
    if comm.rank == 0 or not just_one:
        ranks = CountedComm(part)  # its own, so that its windows go with it: the next run needs the memory
        summary = train(job, ranks, quiet, write, kept, brief=True)
        ranks.free()
    comm.Barrier()
    part.Free()
    return (summary, kept["metrics"]) if comm.rank == 0 else None


def _warm_up(job: Job, comm: CountedComm) -> None:
    """Let every rank compute a few clocks by itself: what a process does slowly at first on a device would be counted against the run that comes first there."""
    part = comm.watched("split", comm.mpi.Split, comm.rank, 0)
    ranks = CountedComm(part)
    short = {"steps": WARM_UP_CLOCKS, "epochs": 0, "seconds": 0.0, "target": "", "patience": 0, "slowdown": "", "check_replicas": 0, "tensorboard": False}
    short |= {"average_every": Job.average_every}
    train(alone(job).with_values(short, "warm-up"), ranks, True, False)
    ranks.free()
    part.Free()


def _check_data(jobs: list[Job], comm: CountedComm) -> None:
    """Choose devices, read the data once and build every network, so that what is wrong with them is found before anything is written."""
    for job in jobs:
        device.of_job(job, comm)
    ranks = CountedComm(comm.mpi)
    data = load(jobs[0], ranks)
    for job in jobs:
        check_target(job, data)
    agree(comm, lambda: [build_net(job, data, "numpy") for job in jobs])
    for job in jobs:
        sparse_rows.check(job, data, plugins.load("mpidml.strategies", job.strategy)(job, comm))
    ranks.free()


def _check(variants: list[Variant], comm: CountedComm, writes: bool) -> None:
    """Let the strategy look at each job, so that a variant that cannot run is found before the first one has."""
    for _, job in variants:
        events.check(job, writes)
        if job.compress and job.transport == "auto" and comm.one_host:
            raise UserError(f"--compress {job.compress}: is off where all ranks share memory, so nothing would be compared; add --transport mpi, or leave it out")
        plugins.load("mpidml.strategies", job.strategy)(job, comm)


def _config(values: Mapping[str, Any]) -> str:
    """Return what was asked for as TOML, lists as lists."""
    return to_toml({name.replace("-", "_"): value for name, value in values.items() if name != "out"})
