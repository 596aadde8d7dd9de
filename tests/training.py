"""Train a job on the ranks of a test's communicator, and look at it before it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm
from mpidml.strategies.base import Run, train


def trained(comm: Any, job: Job, ranks_per_host: int = 0, write: bool = False, **changes: Any) -> tuple[dict[str, Any], Any]:
    """Train `job` with `changes`; return the summary and the final parameters, on every rank. `ranks_per_host`: see `CountedComm`."""
    counted = CountedComm(comm, ranks_per_host)
    kept: dict[str, Any] = {}
    try:
        return train(job.with_values(changes, "test"), counted, quiet=True, write=write, keep=kept), kept["values"]
    finally:
        counted.free()


@contextmanager
def driven(comm: Any, job: Job, keep: dict[str, Any] | None = None, **changes: Any) -> Iterator[Run]:
    """Train `job` with `changes`; give the run to be looked at before it ends, which fills `keep`."""
    counted = CountedComm(comm)
    run = Run(job.with_values(changes, "test").checked(), counted, quiet=True, write=False, brief=True)
    run.drive()
    yield run
    run.end(keep)
    run.data.close()
    counted.free()
