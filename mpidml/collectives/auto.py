"""Choose by measurement: at the start a few sizes are summed by every algorithm that fits, and each buffer later takes the fastest for its size."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from mpidml.collectives.base import Collective, Sum, make_collective
from mpidml.core.errors import UserError
from mpidml.core.rounds import Array

SIZES_NBYTES = (1 << 12, 1 << 16, 1 << 20)
N_TIMES, WARM_NBYTES = 5, 1 << 19
"""At least so many sums, of small buffers as many as sum up that many bytes: the first ones are slow, not by the same factor."""


class Auto(Collective):
    """A buffer is summed by what was fastest at the measured size that is nearest (by ratio); `picked` of its sum says which.

    Opening costs some tens of ms. On one host buffers lie in shared memory, unless `memory` is false. `seconds[name, nbytes]`: what was measured,
    the best of 5 to 128 of the slowest rank, alike on every rank.
    """

    by_timing: ClassVar[bool] = True

    def __init__(self, memory: bool = True) -> None:
        if not isinstance(memory, bool):
            raise ValueError(f"memory = {memory} is neither true nor false; give one of them")
        self.memory = memory

    def open(self, comm: Any) -> None:
        """Measure (Collective on comm)."""
        super().open(comm)
        some_share = max(comm.allgather(comm.host.size)) > 1
        self.home = "" if not self.memory else "shared" if comm.one_host else "hierarchical" if some_share else ""
        names = [*filter(None, [self.home]), "mpi", *(("rabenseifner", "recursive_doubling") if comm.size > 1 else ())]
        self.known = {name: make_collective(name, comm) for name in names}
        self.seconds: dict[tuple[str, int], float] = {}
        for nbytes in SIZES_NBYTES:
            buffer = self.allocate(nbytes // 4, "f4")
            for name, collective in self.known.items():
                self.seconds[name, nbytes] = _measured(comm, collective.plan(buffer), max(N_TIMES, WARM_NBYTES // nbytes))

    def allocate(self, n: int, dtype: Any) -> Array:
        """Return n zeros, in shared memory where ranks share a host."""
        return self.known[self.home].allocate(n, dtype) if self.home else super().allocate(n, dtype)

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum by the fastest; by the next best where it cannot sum this type."""
        problem: UserError | None = None
        for name in self._fastest_first(buffer.nbytes):
            try:
                found = self.known[name].plan(buffer)
            except UserError as error:
                problem = error
                continue
            found.picked = name
            return found
        assert problem is not None
        raise problem

    def pick(self, nbytes: int) -> Collective:
        """Return the fastest for buffers of `nbytes`."""
        return self.known[self._fastest_first(nbytes)[0]]

    def _fastest_first(self, nbytes: int) -> list[str]:
        nearest = min(SIZES_NBYTES, key=lambda size: max(size, nbytes) / max(1, min(size, nbytes)))
        return sorted(self.known, key=lambda name: self.seconds[name, nearest])

    def free(self) -> None:
        """Free what the algorithms hold."""
        for collective in self.known.values():
            collective.free()


def _measured(comm: Any, total: Sum, n_times: int) -> float:
    best = float("inf")
    for _ in range(n_times):
        comm.Barrier()
        start = time.perf_counter()
        total.start()
        total.wait()
        best = min(best, time.perf_counter() - start)
    total.free()
    slowest: float = max(comm.allgather(best))
    return slowest
