"""Describe what a plan needs besides its job: how many ranks on how many hosts, what lies between them, and what one may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mpidml.core.errors import UserError
from mpidml.core.job import Job, flag
from mpidml.core.parsing import parsed

DECIDED = ("strategy", "partition", "accumulate")
"""Flags of a job that a plan decides."""


@dataclass(frozen=True)
class PlanRequest:
    """The flags of `plan` that `train` has not."""

    ranks: int = flag(4, "how many ranks the job may use")
    hosts: int = flag(1, "how many hosts they are on, as many on each")
    cores: int = flag(0, "cores of a host, which ranks beyond their number share (0: as many as this machine has)")
    latency: float = flag(50e-6, "seconds that a message between hosts travels")
    bandwidth: float = flag(1.25e9, "bytes per second of a rank's link to other hosts, each way (0: payloads take no time)")
    host_latency: float = flag(5e-6, "the same inside a host (measured where plan runs on several ranks)")
    host_bandwidth: float = flag(5e9, "the same inside a host (measured where plan runs on several ranks)")
    wake: float = flag(125e-6, "seconds until a rank that waits has a core again, where there are more ranks than cores")
    flops_per_second: float = flag(0.0, "operations per second of a core, in place of a measurement of each layer on this machine")
    apply: float = flag(0.0, "seconds that a core takes to change all weights, in place of a measurement")

    def with_values(self, values: Mapping[str, Any], where: str) -> PlanRequest:
        """Return a request with `values` in their types; UserError names what cannot be, or would do nothing."""
        found = replace(self, **{name: parsed(value, getattr(self, name), f"{where}: {name}") for name, value in values.items()})
        for name, least in (("ranks", 1), ("hosts", 1), ("cores", 0)):
            if getattr(found, name) < least:
                raise UserError(f"--{name} {getattr(found, name)}: is below {least}; give a whole number from {least} up")
        if found.ranks % found.hosts:
            raise UserError(f"--ranks {found.ranks}: are not as many on each of --hosts {found.hosts}; give a multiple of {found.hosts}")
        for name in ("latency", "bandwidth", "host_latency", "host_bandwidth", "wake", "flops_per_second", "apply"):
            value = getattr(found, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"--{name.replace('_', '-')} {value}: is not a number from 0 up; give one")
        for name in ("latency", "bandwidth"):
            if name in values and found.hosts == 1:
                raise UserError(f"--{name} {values[name]}: does nothing on one host, whose ranks have --host-{name}; give --hosts, or leave it out")
            if f"host_{name}" in values and found.ranks == found.hosts:
                raise UserError(f"--host-{name} {values[f'host_{name}']}: does nothing with one rank on each host; give more ranks, or leave it out")
        return found


NAMES = tuple(f.name for f in fields(PlanRequest))


def asked(values: Mapping[str, Any], where: str = "plan") -> tuple[PlanRequest, Job]:
    """Return what is asked for, and for which job; UserError names what cannot be."""
    given = {name.replace("-", "_"): value for name, value in values.items()}
    request = PlanRequest().with_values({name: value for name, value in given.items() if name in NAMES}, where)
    job = Job().with_values({name: value for name, value in given.items() if name not in NAMES}, where).checked()
    job.refuse(DECIDED, "plan, which says what it should be")
    job.refuse(("replicas",), "plan, which looks at grids alone")
    job.refuse(("compress", "slowdown"), "plan, which prices sums of plain values on ranks that are alike")
    if job.device not in (Job.device, "cpu"):
        raise UserError(f"--device {job.device}: a plan prices what CPUs compute; leave it out")
    if job.resume:
        raise UserError(f"--resume {job.resume}: a run that goes on has its plan; leave it out")
    return request, job
