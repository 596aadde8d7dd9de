"""Bring what workers measure to rank 0 while they run: rows of numbers, sent a few times a second, never waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from mpidml.core.role import Array
from mpidml.runtime.comm import CountedComm

TAG = 7


class Telemetry:
    """Collect rows of `width` float64; `send` on any rank passes on what is new, `receive` on rank 0 returns what has come."""

    def __init__(self, comm: CountedComm, width: int) -> None:
        self.comm, self.width = comm, width
        self.rows: list[tuple[float, ...]] = []
        self.sending: list[tuple[Any, Array]] = []
        self.n_sent = 0

    def add(self, row: tuple[float, ...]) -> None:
        """Note one row."""
        self.rows.append(row)

    def send(self) -> None:
        """Pass new rows on to rank 0 (they stay here on rank 0 itself)."""
        if self.comm.rank == 0 or not self.rows:
            return
        self.sending = [(request, data) for request, data in self.sending if not request.Test()]
        data = np.array(self.rows, np.float64).ravel()
        self.rows.clear()
        self.sending.append((self.comm.Isend(data, 0, TAG), data))
        self.n_sent += 1

    def receive(self) -> list[tuple[float, ...]]:
        """Return the rows that have come to rank 0, its own included, without waiting."""
        found, self.rows = self.rows, []
        status = MPI.Status()
        while self.comm.size > 1 and self.comm.mpi.Iprobe(MPI.ANY_SOURCE, TAG, status):
            found += self._take(status)
        return found

    def drain(self) -> list[tuple[float, ...]]:
        """Send all that is left and return on rank 0 all that has come (Collective on comm, after the drivers have ended)."""
        self.send()
        counts = self.comm.gather(self.n_sent)
        status = MPI.Status()
        received: list[tuple[float, ...]] = []
        if self.comm.rank == 0:
            with self.comm.blocked("what was measured, from one"):
                for _ in range(sum(counts) - self.n_received):
                    self.comm.mpi.Probe(MPI.ANY_SOURCE, TAG, status)
                    received += self._take(status)
        with self.comm.blocked("what was measured, to the first"):
            for request, _ in self.sending:
                request.Wait()
        rows, self.rows = self.rows, []
        return received + rows

    n_received = 0

    def _take(self, status: MPI.Status) -> list[tuple[float, ...]]:
        data = np.empty(status.Get_count(MPI.BYTE) // 8, np.float64)
        self.comm.mpi.Recv([data, MPI.BYTE], status.source, TAG)
        self.n_received += 1
        return [tuple(row) for row in data.reshape(-1, self.width).tolist()]
