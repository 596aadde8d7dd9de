"""Carry what replicas of a pipeline push in one order: gradients into slots that are known to be free, and short words, each row in its order.

    replica 0   [slot 0][slot 1] ..  -- gradient of a wave -->  [slot 0][slot 1] ..   replica 1       as many as SLOTS that are not taken yet
                                     <-- the oldest is taken --
    one rank    1.0 4.0 0.0 ..       -- word -->                every other rank of its row
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mpidml.core.role import Array
from mpidml.ps.order import OrderedServer, Pushed
from mpidml.runtime.held import Held
from mpidml.runtime.waves import HEADER_NBYTES, Exchange

SLOTS = 4
"""Gradients of a replica that another one has not taken yet."""
N_NUMBERS = 5
"""Of a word."""


class Words:
    """A row of short messages from rank `source` to the others of `comm`, which all are sent the same."""

    def __init__(self, comm: Any, source: int) -> None:
        self.comm, self.tag, self.sends = comm, comm.new_tag(), comm.rank == source
        self.come = np.zeros(N_NUMBERS)
        self.request = None if self.sends else comm.Recv_init(self.come, source, self.tag)
        self.going: list[tuple[Any, Array]] = []
        if self.request is not None:
            self.request.Start()

    def say(self, *numbers: float) -> None:
        """Send a word."""
        word = np.array([*numbers, *[0.0] * (N_NUMBERS - len(numbers))])
        self.going = [(request, sent) for request, sent in self.going if not request.Test()]
        self.going += [(self.comm.Isend(word, rank, self.tag), word) for rank in range(self.comm.size) if rank != self.comm.rank]

    def heard(self) -> Iterator[list[float]]:
        """Give the words that have come."""
        while self.request is not None and self.request.Test():
            word = self.come.tolist()
            self.request.Start()
            yield word

    def free(self) -> None:
        """Free the requests; nothing is said any more."""
        with self.comm.blocked("the last words"):
            for request, _ in self.going:
                request.Wait()
            if self.request is not None:
                self.request.Cancel()
                self.request.Wait()
                self.request.Free()


class Credited(Exchange):
    """An exchange whose sender knows by a message which of its slots are free everywhere (Collective on `comm`).

    `arrived`, where it is a list: replica and wave of what has come.
    """

    def __init__(self, comm: Any, held: Held, server: OrderedServer, waiting: Any) -> None:
        super().__init__(comm, held, server, waiting, SLOTS)
        tag, nothing = comm.new_tag(), np.zeros(0, np.uint8)
        self.n_freed = [0] * comm.size
        self.credits = {rank: [comm.Recv_init(nothing, rank, tag) for _ in range(SLOTS)] for rank in self.others}
        self.freeing = {rank: [comm.Send_init(nothing, rank, tag) for _ in range(SLOTS)] for rank in self.others}
        self.arrived: list[tuple[int, int]] | None = None

    def serve(self) -> None:
        """Take the pushes that are here."""
        for rank in self.others:
            while (k := self.n_taken[rank]) < self.n_freed[rank] + SLOTS and self.receives[rank][k % SLOTS].Test():
                self._take(rank)

    def push(self, wave: int, version: int) -> None:
        """Send the stage's gradient of a wave to the other replicas once all have a slot for it, and take it here."""
        me = self.comm.rank
        k = self.n_taken[me]

        def free() -> bool:
            return self.n_freed[me] > k - SLOTS and all(self.credits[rank][k % SLOTS].Test() for rank in self.others)

        self.waiting.until(free, lambda: f"a slot for the gradient of wave {wave} of stage {self.held.number} in all replicas")
        self._write(self.slots[me, k % SLOTS], wave, version)
        for request, rank in zip(self.sends[k % SLOTS], self.others, strict=True):
            self.credits[rank][k % SLOTS].Start()
            request.Wait()  # of the time before: it has long gone
            request.Start()
        self._take(me)

    def let_go(self, rank: int) -> None:
        """Let a replica write to its oldest slot again."""
        k = self.n_freed[rank] % SLOTS
        self.n_freed[rank] += 1
        if rank != self.comm.rank:
            self.receives[rank][k].Start()
            self.freeing[rank][k].Wait()
            self.freeing[rank][k].Start()

    def _take(self, rank: int) -> None:
        slot = self.slots[rank, self.n_taken[rank] % SLOTS]
        self.n_taken[rank] += 1
        wave, version = slot[:HEADER_NBYTES].view(np.int64).tolist()
        self.server.push(rank, Pushed(wave, version, slot[HEADER_NBYTES:].view(self.held.gradient.dtype)))
        if self.arrived is not None:
            self.arrived.append((rank, wave))

    def free(self) -> None:
        """Free the requests; all that was pushed is taken everywhere."""
        with self.comm.blocked("the last slots"):
            for requests in (*self.credits.values(), *self.freeing.values()):
                for request in requests:
                    request.Wait()
                    request.Free()
        super().free()
