"""Keep rows that do not fit in memory in one file for each host, which has no name any more as soon as all its ranks have opened it.

So the room is free again when the last rank has closed it, however the run ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import weakref
from typing import Any

from mpidml.core.errors import UserError
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm


class Scratch:
    """An empty file in `folder` ("": the system's for temporary files) that the ranks of a host share; UserError where none can be (Collective on comm)."""

    def __init__(self, folder: str, comm: CountedComm) -> None:
        self.folder, self.used = folder or tempfile.gettempdir(), 0
        made = agree(comm, self._make if comm.host.rank == 0 else lambda: "")
        path = comm.host.bcast(made, 0)
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            comm.host.Barrier()
        finally:
            if made:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        self.close = weakref.finalize(self, os.close, self.fd)

    def _make(self) -> str:
        try:
            fd, path = tempfile.mkstemp(prefix="mpidml-", suffix=".rows", dir=self.folder)
        except OSError as error:
            raise UserError(f"--scratch {self.folder}: no file can be made there ({error.strerror}); name a folder that can be written") from None
        os.close(fd)
        return path

    def reserve(self, nbytes: int) -> int:
        """Take room for nbytes, by one rank for all, and return where it begins; UserError where the disk has not so much."""
        offset, room = self.used, os.fstatvfs(self.fd)
        free = room.f_bavail * room.f_frsize
        try:
            if nbytes > free:
                raise OSError(errno.ENOSPC, "")
            if nbytes:
                os.posix_fallocate(self.fd, offset, nbytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"--scratch {self.folder}: {nbytes / 1e6:.0f} MB of rows do not fit what is free there ({free / 1e6:.0f} MB); name a folder on a larger disk"
            ) from None
        self.used += nbytes
        return offset

    def write(self, rows: Any, offset: int) -> None:
        """Write contiguous rows at a byte."""
        left = memoryview(rows).cast("B") if rows.size else memoryview(b"")
        while left:
            n = os.pwrite(self.fd, left, offset)
            left, offset = left[n:], offset + n
