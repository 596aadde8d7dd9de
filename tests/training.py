"""Train a job on the ranks of a test's communicator."""

from __future__ import annotations

from typing import Any

from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm
from mpidml.strategies.base import train


def trained(comm: Any, job: Job, ranks_per_host: int = 0, write: bool = False, **changes: Any) -> tuple[dict[str, Any], Any]:
    """Train `job` with `changes`; return the summary and the final parameters, on every rank. `ranks_per_host`: see `CountedComm`."""
    counted = CountedComm(comm, ranks_per_host)
    kept: dict[str, Any] = {}
    try:
        return train(job.with_values(changes, "test"), counted, quiet=True, write=write, keep=kept), kept["values"]
    finally:
        counted.free()
