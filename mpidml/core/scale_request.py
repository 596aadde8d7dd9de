"""Describe what a scaling study needs besides its job: on how many ranks it is measured and simulated, how often, and what lies between hosts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mpidml.core.errors import UserError
from mpidml.core.job import Job, flag
from mpidml.core.parsing import parsed
from mpidml.core.placement import computing
from mpidml.core.plan_request import PlanRequest

KINDS = ("strong", "weak")
"""The global batch stays; a rank's share of it stays."""
STEPS = 100
IDLE = ("epochs", "target", "patience", "seconds", "checkpoint_every", "keep_checkpoints", "trace", "tensorboard")
"""Flags of a job that say when a run ends and what it leaves: a study counts steps, and keeps their seconds."""

OF_FOLDER = ("out", "report")
"""Flags of a job that speak of the study's folder, not of what is measured."""


@dataclass(frozen=True)
class ScaleRequest:
    """The flags of `scale` that `train` has not."""

    ranks: tuple[int, ...] = flag((), "on how many ranks to measure, as 1,2,4,8; what is measured already is kept")
    simulate: tuple[int, ...] = flag((), "further numbers of ranks to simulate, as 16,64,1024; those that were measured are simulated, too")
    strong: bool = flag(False, "the global batch stays, --batch over all ranks (neither of --strong and --weak: both)")
    weak: bool = flag(False, "a rank's share stays, so the global batch is --batch x ranks that compute, at the same --lr: that measures speed, not learning")
    only: int = flag(0, "measure these ranks alone and make no table: what a task of a job array does; it may be started by mpirun or srun on so many")
    table: bool = flag(False, "measure nothing: simulate, and make table and picture of what is measured")
    repeat: int = flag(3, "runs on each number of ranks, of which the median counts")
    warm_up: int = flag(20, f"steps of a run that do not count (--steps: {STEPS} unless given)")
    share_cores: bool = flag(False, "measure more ranks than a host has cores, too; table and picture mark them")
    latency: float = flag(PlanRequest.latency, "seconds that a message between hosts travels in the simulation (measured where a run was on several hosts)")
    bandwidth: float = flag(PlanRequest.bandwidth, "bytes per second of a rank's link to other hosts, each way (measured likewise)")

    def with_values(self, values: Mapping[str, Any], where: str) -> ScaleRequest:
        """Return a request with `values` in their types; UserError names what cannot be, or would do nothing."""
        found = replace(self, **{name: parsed(value, getattr(self, name), f"{where}: {name}") for name, value in values.items()})
        for name in ("ranks", "simulate"):
            numbers = getattr(found, name)
            text = f"--{name} {','.join(map(str, numbers))}"
            if any(n < 1 for n in numbers):
                raise UserError(f"{text}: {min(numbers)} is below 1; give whole numbers from 1 up, as 1,2,4")
            if len(set(numbers)) < len(numbers):
                raise UserError(f"{text}: names a number twice; name each once")
            if name in values and not numbers:
                raise UserError(f"{text}: names no number; give some, as 1,2,4")
        for name, least in (("only", 1 if "only" in values else 0), ("repeat", 1), ("warm_up", 0)):
            if getattr(found, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(found, name)}: is below {least}; give a whole number from {least} up")
        for name in ("latency", "bandwidth"):
            if not (math.isfinite(getattr(found, name)) and getattr(found, name) > 0):
                raise UserError(f"--{name} {getattr(found, name)}: is not a positive number; give for example {getattr(ScaleRequest, name):g}")
        if found.only and found.ranks and found.only not in found.ranks:
            raise UserError(f"--only {found.only}: is none of --ranks {','.join(map(str, found.ranks))}; give one of them")
        idle = [name for name in ("simulate", "latency", "bandwidth", "table") if name in values and found.only]
        idle += [name for name in ("ranks", "share_cores", "repeat", "warm_up") if name in values and found.table]
        for name in idle:
            raise UserError(f"--{name.replace('_', '-')}: does nothing beside {'--only' if found.only else '--table'}; leave it out")
        return found

    def kinds(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return which of KINDS are asked for by the flags that are among `values`."""
        wanted = tuple(kind for kind in KINDS if getattr(self, kind)) or tuple(kind for kind in KINDS if kind not in values)
        if not wanted:
            raise UserError("--no-strong, --no-weak: leave nothing to measure; leave one of them out")
        return wanted


NAMES = tuple(f.name for f in fields(ScaleRequest))


def asked(values: Mapping[str, Any], where: str = "scale") -> tuple[ScaleRequest, Job | None]:
    """Return what is asked for, and of which job: None where no value speaks of one. UserError names what cannot be."""
    given = {name.replace("-", "_"): value for name, value in values.items()}
    request = ScaleRequest().with_values({name: value for name, value in given.items() if name in NAMES}, where)
    request.kinds(given)
    if not (request.ranks or request.only or request.table):
        raise UserError("--ranks: names no number of ranks to measure; give some, as --ranks 1,2,4, or --table for what is measured")
    of_job = {name: value for name, value in given.items() if name not in (*NAMES, *OF_FOLDER)}
    return request, studied(Job().with_values(of_job, where)) if of_job else None


def studied(job: Job) -> Job:
    """Return `job` as a study runs it: so many steps, nothing written."""
    if job.resume:
        raise UserError(f"--resume {job.resume}: a study begins each of its runs anew; leave it out")
    plain = {name: getattr(Job, name) for name in IDLE} | {"report": False, "steps": job.steps or STEPS, "out": ""}
    return job.with_values(plain, "scale").checked()


def sized(job: Job, kind: str, n_ranks: int) -> Job:
    """Return the job of a point: under `weak` every rank that computes brings a batch of its own."""
    return job if kind == "strong" else replace(job, batch=job.batch * computing(n_ranks, job.servers))
