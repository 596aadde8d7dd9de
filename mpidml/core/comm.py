"""Name the few communicator methods that the package uses, in mpi4py's spelling; `runtime.comm` makes the proxy that has them."""

from __future__ import annotations

from typing import Any, Protocol

from mpidml.core.role import Array


class Comm(Protocol):
    """A communicator: bytes counted, waits watched. `shared` allocates in a window of the host."""

    rank: int
    size: int
    nbytes_sent: int

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Any: ...

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Any: ...

    def Barrier(self) -> None: ...

    def Bcast(self, buffer: Any, root: int = 0) -> None: ...

    def Allreduce(self, send: Any, receive: Any, op: Any = None) -> None: ...

    def Allgatherv(self, send: Any, receive: Any) -> None: ...

    def Gatherv(self, send: Any, receive: Any, root: int = 0) -> None: ...

    def bcast(self, value: Any, root: int = 0) -> Any: ...

    def gather(self, value: Any, root: int = 0) -> Any: ...

    def allgather(self, value: Any) -> Any: ...

    def shared(self, n: int, dtype: Any) -> Array:
        """Return n elements of `dtype` that all ranks of this host share (Collective on the host's ranks)."""
