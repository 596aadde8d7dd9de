"""Take the name of MPI's shared memory off the system once every rank has it: the memory then goes with the last process, however that ends.

    MPI_Init    /dev/shm/mpich_shm_f8427af_0, about 1 MB for each rank of the host     removed by MPI_Finalize alone: a job that is killed,
    unname      mapped, without a name                                                 or that ends by Abort, leaves it until the host restarts

MPICH alone: Open MPI opens the memory of another rank when it first sends to it, by its name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mpidml.core.current_wait import MAIN, Call, Wait

if TYPE_CHECKING:
    from mpi4py import MPI

FOLDER, PREFIX = "/dev/shm/", "mpich_shm_"
DELETED = " (deleted)"


def unname(comm: MPI.Intracomm) -> None:
    """Remove the names of what this process has mapped, after all ranks have it mapped (Collective on comm)."""
    with MAIN.on(Wait(f"the shared memory of all {comm.size} ranks", time.monotonic(), Call(0, 0, range(comm.size)))):
        comm.Barrier()
    for path in named(_maps()):
        with suppress(OSError):  # another rank of the host was first
            os.unlink(path)


def named(maps: Iterable[str]) -> list[str]:
    """Return the files of MPICH's shared memory that lines of /proc/PID/maps have, and that have a name yet."""
    found = {line.rstrip("\n")[line.index("/") :] for line in maps if f" {FOLDER}{PREFIX}" in line}
    return sorted(path for path in found if not path.endswith(DELETED))


def _maps() -> list[str]:
    try:
        return Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # no such system, and no such folder
        return []
