"""Let the MPI library sum: a persistent, nonblocking collective of MPI 4."""

from __future__ import annotations

from typing import Any

from mpidml.collectives.base import Collective, Sum
from mpidml.core.errors import UserError
from mpidml.core.rounds import Array

KINDS = "iufc"
MOST_ELEMENTS = 1 << 30
"""A longer buffer is summed in parts: older libraries count elements by 32 bits."""


class Mpi(Collective):
    """The library chooses the algorithm, and moves bytes unseen: they are not counted. Best for a few KB."""

    def refuse(self, dtype: Any) -> None:
        """UserError for a type that MPI has no sum of, and for numbers in another machine's order of bytes."""
        if dtype.kind not in KINDS or (dtype.kind == "f" and dtype.itemsize < 4) or not dtype.isnative:
            raise UserError(f"collective mpi: MPI has no sum of {dtype}; use ring, or float32")

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`."""
        self.check(buffer)
        return _MpiSum(self.comm, buffer)


class _MpiSum(Sum):
    def __init__(self, comm: Any, buffer: Array) -> None:
        self.requests = [comm.Allreduce_init(buffer[lo : lo + MOST_ELEMENTS]) for lo in range(0, max(buffer.size, 1), MOST_ELEMENTS)]
        self.running = 0

    def start(self) -> None:
        """Begin."""
        if self.running:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        self.running = len(self.requests)
        for request in self.requests:
            request.Start()

    def test(self) -> bool:
        """Let the library go on."""
        while self.running and self.requests[-self.running].Test():
            self.running -= 1
        return not self.running

    def free(self) -> None:
        """Free the requests."""
        for request in self.requests:
            request.Free()
