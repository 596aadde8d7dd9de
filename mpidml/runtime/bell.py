"""Sleep until somebody rings: one datagram socket a rank, named by job and rank in Linux's abstract space (no file, nothing to clean up)."""

from __future__ import annotations

import os
import select
import socket
from typing import Any


class Bell:
    """Ring and be rung by the ranks of `host` (Collective on host)."""

    def __init__(self, host: Any) -> None:
        job = host.bcast(os.urandom(8).hex(), 0)
        self.names = [f"\0mpidml-{job}-{r}" for r in range(host.size)]
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.names[host.rank])
        self.socket.setblocking(False)
        self.poller = select.poll()
        self.poller.register(self.socket, select.POLLIN)
        host.Barrier()

    def ring(self, host_rank: int) -> None:
        """Wake a rank of the host; a full mailbox has been rung already, a closed one has ended."""
        try:
            self.socket.sendto(b"!", self.names[host_rank])
        except (BlockingIOError, ConnectionRefusedError, FileNotFoundError):
            pass

    def wait(self, seconds: float) -> bool:
        """Sleep until rung, at most `seconds`; return whether it rang."""
        rung = bool(self.poller.poll(seconds * 1e3))
        if rung:
            try:
                while self.socket.recv(16):
                    pass
            except BlockingIOError:
                pass
        return rung

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
