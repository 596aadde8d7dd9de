"""Wrap a communicator: mpi4py's spelling, bytes counted where they leave, shared windows of the host on the side."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from mpidml.collectives import base
from mpidml.core.errors import UserError
from mpidml.runtime import launch, start_limit, threads

_world = launch.world_from_environment(os.environ)
launch.refuse(_world, launch.foreign(_world, os.environ))
if _world.launcher is None:
    # Alone, nobody has told Open MPI to leave out what does not work here; other MPIs do not read these.
    os.environ.update(launch.openmpi_environment(os.environ, 1))
else:
    os.environ.update(launch.mpich_environment(os.environ, _world.local_size, _world.size or 0))

base.SPIN_SECONDS = base.spin_seconds(_world.local_size, int(min(threads.given(os.environ), threads.quota())))

with start_limit.counted():
    from mpi4py import MPI  # the lines above must come first

from mpidml.runtime.watched import Watched, ranks_of, until, waiting  # noqa: E402

Array = np.ndarray[Any, Any]
FIRST_NEW_TAG = 1000
STRONG_ORDER = platform.machine() in ("x86_64", "AMD64")


class Sending:
    """A persistent send whose bytes are counted at each start."""

    __slots__ = ("Free", "Test", "Wait", "comm", "nbytes", "request")

    def __init__(self, comm: CountedComm, request: Any, nbytes: int) -> None:
        self.comm, self.request, self.nbytes = comm, request, nbytes
        self.Test, self.Wait, self.Free = request.Test, request.Wait, request.Free

    def Start(self) -> None:
        self.comm.count(self.nbytes)
        self.request.Start()


class CountedComm(Watched):
    """A duplicate of `comm` that counts the bytes it sends; `host` is its part on this host, `leader` the first rank there (Collective on comm).

    `host_rank_of[r]` is rank r's number on this host, or -1 where r lives elsewhere. `ranks_per_host` > 0 treats every so many ranks as a
    host of their own, so that what happens between hosts can be tried on one. Call `free` at the end.
    """

    ANY_SOURCE = MPI.ANY_SOURCE

    def __init__(self, comm: Any = None, ranks_per_host: int = 0, counts_for: CountedComm | None = None) -> None:
        self.counts_for = counts_for
        of = world() if comm is None else comm
        with waiting(f"a communicator of {of.size} ranks", ranks_of(of)):
            own = of.Dup()
        super().__init__(own)
        host: Any = self.watched("Split_type", own.Split_type, MPI.COMM_TYPE_SHARED, self.rank)
        if ranks_per_host:
            whole = host
            host = self.watched("Split", whole.Split, self.rank // ranks_per_host, self.rank)
            whole.Free()
        self.host = Watched(host, " of a host")
        self.nbytes_sent = self.n_sent = self.last_tag = 0
        members = self.host.allgather(self.rank)
        self.leader = members[0]
        self.host_rank_of = [members.index(r) if r in members else -1 for r in range(self.size)]
        self.windows: dict[int, Any] = {}

    @property
    def one_host(self) -> bool:
        """Whether all ranks live on this host."""
        return bool(self.host.size == self.size)

    def hosts(self, rank: int) -> bool:
        """Whether this process is `rank`."""
        return bool(rank == self.rank)

    def count(self, nbytes: int) -> None:
        """Count one message, here and where this is a part of another communicator, there."""
        self.nbytes_sent += nbytes
        self.n_sent += 1
        if self.counts_for is not None:
            self.counts_for.count(nbytes)

    def new_tag(self) -> int:
        """Return a tag that nobody else uses, the same on all ranks that ask equally often."""
        self.last_tag += 1
        return FIRST_NEW_TAG + self.last_tag

    def split(self, color: int) -> CountedComm | None:
        """Return a communicator of the ranks that give the same color, whose bytes count here, too; None for a color below 0 (Collective on comm)."""
        part = self.watched("split", self.mpi.Split, color if color >= 0 else MPI.UNDEFINED, self.rank)
        if part == MPI.COMM_NULL:
            return None
        found = CountedComm(part, counts_for=self)
        part.Free()
        return found

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Any:
        self.count(memoryview(buffer).nbytes)
        return self.mpi.Isend([buffer, MPI.BYTE], dest, tag)

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Any:
        return self.mpi.Irecv([buffer, MPI.BYTE], source, tag)

    def Recv_init(self, buffer: Any, source: int, tag: int = 0) -> Any:
        return self.mpi.Recv_init([buffer, MPI.BYTE], source, tag)

    def Send_init(self, buffer: Any, dest: int, tag: int = 0) -> Sending:
        return Sending(self, self.mpi.Send_init([buffer, MPI.BYTE], dest, tag), buffer.nbytes)  # of the host or of a device

    def Allreduce_init(self, buffer: Array) -> Any:
        """Prepare MPI's own sum in place; its bytes are not seen here."""
        return self.mpi.Allreduce_init(MPI.IN_PLACE, buffer, MPI.SUM)

    def fence(self) -> None:
        """Order what this rank wrote to and read from shared windows, on machines that reorder stores (x86 does not)."""
        if not STRONG_ORDER:
            for window in self.windows.values():
                window.Sync()


    def Bcast(self, buffer: Any, root: int = 0) -> None:
        if self.rank == root:
            self.count(memoryview(buffer).nbytes * (self.size - 1))
        self.watched(
            "Bcast", lambda: until(self.mpi.Ibcast([buffer, MPI.BYTE], root).Test), alike=f"of {memoryview(buffer).nbytes} bytes from {root}"
        )

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
        self.host.compare(f"shared memory of {n} x {np.dtype(dtype).name}")
        window = self.host.window(max(nbytes, 8) if self.host.rank == 0 else 0)
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
        self.host.free_window(self.windows.pop(array.__array_interface__["data"][0]))

    def free(self) -> None:
        """Free windows and communicators (Collective on comm)."""
        for window in reversed(self.windows.values()):
            self.host.free_window(window)
        self.windows.clear()
        self.host.free()
        super().free()


def thread_multiple() -> bool:
    """Tell whether MPI takes calls from several threads at once."""
    return bool(MPI.Query_thread() == MPI.THREAD_MULTIPLE)


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
