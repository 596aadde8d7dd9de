"""Stand in for what the package uses of NCCL in CuPy: each call is work on a stream of the double, carried out between the ranks by MPI.

Calls are compared between the ranks before they are carried out: NCCL itself would wait for ever, or sum what does not belong together.
"""

from __future__ import annotations

import ctypes
import importlib
import struct
import time
import types
from typing import Any

import numpy as np


class NcclError(RuntimeError):
    """What NCCL refuses."""

    __module__ = "cupy_backends.cuda.libs.nccl"


NCCL_LIMIT_SECONDS = 60.0
"""After which a call that other ranks do not come to is an error here; the real one waits for ever."""
_OF_NUMPY = {"NCCL_INT32": (2, "i4"), "NCCL_INT64": (4, "i8"), "NCCL_FLOAT32": (7, "f4"), "NCCL_FLOAT64": (8, "f8")}
_n_ids = 0


def _until(request: Any, what: str) -> Any:
    """Wait for a request of mpi4py."""
    began = time.monotonic()
    while True:
        done, found = request.test()
        if done:
            return found
        if (waited := time.monotonic() - began) > NCCL_LIMIT_SECONDS:
            raise NcclError(f"NCCL_ERROR_REMOTE_ERROR: {what}: other ranks have not come for {NCCL_LIMIT_SECONDS:g} s")
        time.sleep(min(1e-3, max(1e-5, waited / 8)))  # who looks all the time takes the core of those that are waited for


def get_unique_id() -> bytes:
    """Name a communicator: which process made the name, and its number there."""
    from mpi4py import MPI

    global _n_ids
    _n_ids += 1
    return struct.pack("<2i", MPI.COMM_WORLD.rank, _n_ids).ljust(128, b"\0")


class NcclCommunicator:
    """Processes that meet under a name. Every call is compared between them when its turn on its stream comes: kind, number, count, type, root."""

    def __init__(self, ndev: int, commId: bytes, rank: int, config: Any = None) -> None:
        from mpi4py import MPI

        if type(commId) is not bytes or len(commId) != 128:
            raise ValueError("commId is 128 bytes")
        self._cupy = importlib.import_module("tests.shim.cupy_double")  # whose streams and memory these are, and which has this as `cuda.nccl`
        self._n_calls, self._last, self._mpi = 0, self._cupy.Event(), MPI.COMM_NULL
        world, (root, number) = MPI.COMM_WORLD, struct.unpack_from("<2i", commId)
        tag = 10_000 + number % 10_000
        sent = [world.isend((rank, ndev, world.rank), root, tag)]
        if world.rank == root:
            came = [_until(world.irecv(source=MPI.ANY_SOURCE, tag=tag), "init") for _ in range(ndev)]
            sent += [world.isend(sorted(came), process, tag + 10_000) for _, _, process in came]
        members = _until(world.irecv(source=root, tag=tag + 10_000), "init")
        for each in sent:
            _until(each, "init")
        if [(r, n) for r, n, _ in members] != [(r, ndev) for r in range(ndev)]:
            raise NcclError(f"NCCL_ERROR_INVALID_USAGE: ranks and sizes {members}")
        group = world.Get_group().Incl([process for _, _, process in members])
        self._mpi = world.Create_group(group, tag)

    def _call(self, name: str, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int) -> None:
        """Queue a call in place."""
        if not self._mpi:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: the communicator is gone")
        if sendbuf != recvbuf or not all(isinstance(given, int) for given in (sendbuf, count, datatype, op, root, stream)):
            raise TypeError("numbers alone, and sums in place: more is not asked of it")
        dtype = {number: np.dtype(kind) for number, kind in _OF_NUMPY.values()}[datatype]
        nbytes = count * dtype.itemsize
        if nbytes and not any(a.data.ptr <= sendbuf and sendbuf + nbytes <= a.data.ptr + a.nbytes for a in list(self._cupy._arrays)):
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: no memory of the device")
        memory = np.frombuffer((ctypes.c_char * nbytes).from_address(sendbuf), dtype) if nbytes else np.empty(0, dtype)
        self._n_calls += 1
        said = (name, self._n_calls, count, dtype.str, op, root)
        self._cupy._streams[stream]._give(lambda: self._do(said, memory))
        self._last.record(self._cupy._streams[stream])

    def _do(self, said: tuple[Any, ...], memory: np.ndarray[Any, Any]) -> None:
        from mpi4py import MPI

        text = repr(said).encode().ljust(200)
        found = np.empty((self._mpi.size, len(text)), np.uint8)
        _until(self._mpi.Iallgather(np.frombuffer(text, np.uint8), found), said[0])
        if len(every := {bytes(row).strip() for row in found}) > 1:
            raise RuntimeError(f"NCCL would wait for ever, or sum what does not belong together: {sorted(every)}")
        name, root = said[0], said[5]
        total = memory.copy()
        _until(self._mpi.Ibcast(total, root) if name == "broadcast" else self._mpi.Iallreduce(MPI.IN_PLACE, total), name)
        if name != "reduce" or self._mpi.rank == root:
            memory[...] = total

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        self._call("allReduce", sendbuf, recvbuf, count, datatype, op, 0, stream)

    def reduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int) -> None:
        self._call("reduce", sendbuf, recvbuf, count, datatype, op, root, stream)

    def broadcast(self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int) -> None:
        self._call("broadcast", sendbuff, recvbuff, count, datatype, 0, root, stream)

    def check_async_error(self) -> None:
        """Find none: here a call that goes wrong says so itself."""

    def destroy(self) -> None:
        """End with all others, once all calls are done."""
        self._last.synchronize()
        if self._mpi:
            self._mpi.Free()

    def abort(self) -> None:
        """End without the others."""
        self._mpi = type(self._mpi)()


def namespace() -> types.SimpleNamespace:
    """Return what CuPy has as `cupy.cuda.nccl`."""
    return types.SimpleNamespace(
        available=True,
        get_version=lambda: 23007,
        get_unique_id=get_unique_id,
        NcclCommunicator=NcclCommunicator,
        NcclError=NcclError,
        NCCL_SUM=0,
        **{name: number for name, (number, _) in _OF_NUMPY.items()},
    )
