"""Let one rank of a host at a time do something: a lock of the system on a file that has no name any more, so that nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import tempfile

from mpidml.runtime.comm import CountedComm


class HostLock:
    """A context in which no other rank of this host is (Collective on the host's ranks); a rank that dies inside has left it."""

    def __init__(self, comm: CountedComm) -> None:
        self.comm = comm.host
        leads = comm.host.rank == 0
        made, path = tempfile.mkstemp(prefix="mpidml-lock-") if leads else (-1, "")
        path = comm.host.bcast(path, 0)
        self.file = made if leads else os.open(path, os.O_RDWR)  # each rank opens it: a lock belongs to an opening
        comm.host.Barrier()
        if leads:
            os.unlink(path)

    def __enter__(self) -> None:
        """Wait until nobody is inside."""
        with self.comm.blocked("a lock that another rank has,"):
            fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        """Let the next one in."""
        fcntl.flock(self.file, fcntl.LOCK_UN)

    def free(self) -> None:
        """Close the file."""
        os.close(self.file)
