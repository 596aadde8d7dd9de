"""Choose what sums gradients that lie on a device, where they do not go as codes: NCCL inside hosts, MPI with device pointers, else MPI through the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mpidml.collectives.base import Collective
from mpidml.core import plugins
from mpidml.core.job import NCCL, Job
from mpidml.runtime.compressed_sum import Compressed
from mpidml.runtime.device_sum import DeviceSums, DirectSums, StagedSums, make_sums
from mpidml.runtime.gpu_mpi import takes_device_pointers
from mpidml.runtime.nccl_sum import NcclSums


class Chosen(NamedTuple):
    """What sums, its name, and whether MPI takes device pointers, with the reason, where that was asked."""

    sums: DeviceSums | Compressed
    picked: str
    gpu_mpi: tuple[bool, str] = (False, "")


def verdict(comm: Any, *found: tuple[bool, str]) -> dict[str, Any]:
    """Return on rank 0 what the summary says of MPI and device pointers, whichever ranks have `found` it; a no before a yes (Collective on comm)."""
    asked = [each for each in found if each[1]]
    of = min((each for own in comm.gather(asked) or [] for each in own), default=None)
    return {"gpu_mpi": dict(zip(("takes_device_pointers", "reason"), of, strict=True))} if of is not None else {}


def choose(job: Job, kernels: Any, collective: Collective, on: Callable[[Any], Collective], nbytes: int, lands: bool = True) -> Chosen:
    """Choose for sums of about `nbytes` (Collective on the ranks of `collective`, which is open).

    `on(comm)` makes the same collective over fewer ranks, as NCCL needs it between hosts. `lands`: whether this rank needs what is summed.
    """
    names = [NCCL if job.transport == NCCL else ""]
    found = [(False, "")]

    def by_mpi(over: Collective) -> StagedSums | DirectSums:
        chooses = job.collective == Job.collective
        if over.comm.size > 1:
            found.append(takes_device_pointers(over.comm, kernels.gpu.cupy.cuda.Device().id))
        made = make_sums(over, kernels, nbytes, found[-1][0], chooses)
        names.append(plugins.name_of(made.inner) if chooses or over.by_timing else job.collective)
        return made

    sums = NcclSums(collective.comm, kernels, lambda few: by_mpi(on(few))) if job.transport == NCCL else by_mpi(collective)
    sums.lands = lands
    return Chosen(sums, names[-1], found[-1])
