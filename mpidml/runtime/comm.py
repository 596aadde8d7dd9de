"""Wrap a communicator: mpi4py's spelling, bytes counted where they leave, shared windows of the host on the side."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from mpidml.core.errors import UserError
from mpidml.runtime import launch

_world = launch.world_from_environment(os.environ)
launch.refuse(_world, launch.foreign(_world))
if _world.launcher is None:
    # Alone, nobody has told Open MPI to leave out what does not work here; other MPIs do not read these.
    os.environ.update(launch.openmpi_environment(os.environ, 1))
else:
    os.environ.update(launch.mpich_environment(os.environ, _world.local_size))

from mpi4py import MPI  # noqa: E402 - the lines above must come first

Array = np.ndarray[Any, Any]


class CountedComm:
    """A duplicate of `comm` that counts the bytes it sends; `host` is its part on this host (Collective on comm).

    `host_rank_of[r]` is rank r's number on this host, or -1 where r lives elsewhere. `ranks_per_host` > 0 treats every so many ranks as a
    host of their own, so that what happens between hosts can be tried on one. Call `free` at the end.
    """

    ANY_SOURCE = MPI.ANY_SOURCE

    def __init__(self, comm: Any = None, ranks_per_host: int = 0) -> None:
        self.mpi = (world() if comm is None else comm).Dup()
        self.host: Any = self.mpi.Split_type(MPI.COMM_TYPE_SHARED, self.mpi.rank)
        if ranks_per_host:
            whole = self.host
            self.host = whole.Split(self.mpi.rank // ranks_per_host, self.mpi.rank)
            whole.Free()
        self.rank, self.size = self.mpi.rank, self.mpi.size
        self.nbytes_sent = 0
        members = self.host.allgather(self.rank)
        self.host_rank_of = [members.index(r) if r in members else -1 for r in range(self.size)]
        self.windows: dict[int, Any] = {}

    @property
    def one_host(self) -> bool:
        """Whether all ranks live on this host."""
        return bool(self.host.size == self.size)

    def hosts(self, rank: int) -> bool:
        """Whether this process is `rank`."""
        return bool(rank == self.rank)

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Any:
        self.nbytes_sent += memoryview(buffer).nbytes
        return self.mpi.Isend([buffer, MPI.BYTE], dest, tag)

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Any:
        return self.mpi.Irecv([buffer, MPI.BYTE], source, tag)

    def Recv_init(self, buffer: Any, source: int, tag: int = 0) -> Any:
        return self.mpi.Recv_init([buffer, MPI.BYTE], source, tag)

    def Barrier(self) -> None:
        self.mpi.Barrier()

    def host_nap(self) -> None:
        """Wait for all ranks of the host without taking their cores: for waits of seconds, where a Barrier would spin (Collective on the host's ranks)."""
        _nap(self.host)

    def nap(self) -> None:
        """Wait for all ranks without taking their cores (Collective on comm)."""
        _nap(self.mpi)

    def Bcast(self, buffer: Any, root: int = 0) -> None:
        self.nbytes_sent += memoryview(buffer).nbytes * (self.size - 1) * (self.rank == root)
        self.mpi.Bcast([buffer, MPI.BYTE], root)

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self.mpi.bcast(value, root)

    def gather(self, value: Any, root: int = 0) -> Any:
        return self.mpi.gather(value, root)

    def allgather(self, value: Any) -> list[Any]:
        return list(self.mpi.allgather(value))

    def fits(self, nbytes: int) -> bool:
        """Tell whether the host has room for `nbytes` more of shared memory over all its ranks (Collective on the host's ranks).

        To be asked first: a window that the system grants without having the room ends the process at its first use.
        """
        room = shared_memory_nbytes()
        return bool(self.host.bcast(room is None or nbytes < room, 0))

    def shared(self, n: int, dtype: Any) -> Array:
        """Return n zeros of `dtype` in one window of this host, the same memory on all its ranks (Collective on the host's ranks).

        UserError on all of them where the system has no room for it.
        """
        nbytes = n * np.dtype(dtype).itemsize
        if not self.fits(nbytes):
            raise UserError(
                f"shared memory: {nbytes / 1e6:.0f} MB do not fit what is free in /dev/shm ({(shared_memory_nbytes() or 0) / 1e6:.0f} MB);"
                " enlarge it (mount -o remount,size=... /dev/shm, or --shm-size for a container)"
            )
        window = MPI.Win.Allocate_shared(max(nbytes, 8) if self.host.rank == 0 else 0, 1, comm=self.host)
        window.Lock_all(MPI.MODE_NOCHECK)
        memory: Any = window.Shared_query(0)[0]
        array: Array = np.frombuffer(memory, np.uint8)[:nbytes].view(dtype)
        self.windows[array.__array_interface__["data"][0]] = window
        if self.host.rank == 0:
            array[:] = 0
        self.host.Barrier()
        return array

    def unshare(self, array: Array) -> None:
        """Free an array that `shared` returned; nobody may look at it any more (Collective on the host's ranks)."""
        window = self.windows.pop(array.__array_interface__["data"][0])
        window.Unlock_all()
        window.Free()

    def free(self) -> None:
        """Free windows and communicators (Collective on comm)."""
        for window in reversed(self.windows.values()):
            window.Unlock_all()
            window.Free()
        self.windows.clear()
        self.host.Free()
        self.mpi.Free()


def _nap(comm: Any) -> None:
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(5e-3)


def shared_memory_nbytes() -> int | None:
    """Return the bytes free where shared windows live, None where that is unknown."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def world(checked: bool = True) -> Any:
    """Return COMM_WORLD; `checked` ends the process where its size is not the number of ranks that the launcher started."""
    if checked:
        launch.refuse(_world, launch.mismatch(_world, MPI.COMM_WORLD.size))
    return MPI.COMM_WORLD
