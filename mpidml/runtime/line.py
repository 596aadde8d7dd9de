"""Join the ranks that hold one split model: sums and largest values of their buffers, planned once and counted where they leave.

    layer  ->  line.sum(buffer)  ->  a call that starts the collective's sum of that buffer, and waits for it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mpidml.collectives.base import Collective, RoundSum, Sum, check_alike, make_collective
from mpidml.collectives.recursive_doubling import RecursiveDoubling
from mpidml.core.errors import UserError
from mpidml.core.partition import weighted_cut
from mpidml.core.rounds import Array, Round
from mpidml.runtime.channel import Waiting
from mpidml.runtime.device_sum import DeviceSums, DirectSum, DirectSums
from mpidml.runtime.slowness import Slowness
from mpidml.runtime.summed_there import choose


class TensorLine:
    """The line of all ranks of `collective.comm`; `weights`: each rank's part of every width, alike where none are given, 0 for nothing.

    UserError where there are not as many weights as ranks, where they are no weights, and for a collective that does not sum. `free` lets all
    planned sums go. `waiting` counts what they take, and limits it; `slow` prolongs the computes before. `ranks`: the job's numbers of these, for reports.
    """

    def __init__(
        self, collective: Collective, weights: Sequence[float] = (), waiting: Waiting | None = None, slow: Slowness | None = None, ranks: Sequence[int] = ()
    ) -> None:
        self.collective, self.comm, self.waiting = collective, collective.comm, waiting or Waiting(300.0)
        self.slow, self.ranks = slow or Slowness(None, self.comm.rank), ranks
        self.rank, self.size = int(self.comm.rank), int(self.comm.size)
        self.weights = tuple(weights) or (1.0,) * self.size
        if not collective.exact:
            raise UserError(f"tensor line: {type(collective).__name__} leaves no sum on every rank; choose a collective that does, as ring")
        if len(self.weights) != self.size:
            raise UserError(f"tensor line: {len(self.weights)} weights are given for {self.size} ranks; give one for each")
        try:
            weighted_cut(1, self.weights)
        except ValueError as error:
            raise UserError(f"tensor line: {error}") from None
        self._planned: list[Sum] = []

    def edges(self, n: int) -> list[int]:
        """Return the size + 1 edges by which a width n is cut."""
        return weighted_cut(n, self.weights)

    def sum(self, buffer: Array) -> Callable[[], None]:
        """Return the call that sums `buffer`, 1-D and contiguous, over the ranks in place (Collective on comm, and so is each call)."""
        return self._call(self.collective.plan(buffer))

    def most(self, buffer: Array) -> Callable[[], None]:
        """Return the call that leaves each element's largest value over the ranks in `buffer`, by recursive doubling (Collective, as `sum`)."""
        check_alike(self.comm, buffer)
        return self._call(self._rounds(RecursiveDoubling().rounds(self.rank, self.size, buffer.size).reduce, buffer, largest=True))

    def carry(self, rounds: Sequence[Round], buffer: Array) -> Callable[[], None]:
        """Return the call that carries out this rank's `rounds` on `buffer`, 1-D and contiguous (Collective, as `sum`)."""
        return self._call(self._rounds(rounds, buffer))

    def _rounds(self, rounds: Sequence[Round], buffer: Array, largest: bool = False) -> Sum:
        return RoundSum(self.comm, rounds, buffer, np.maximum if largest else np.add)

    def _call(self, total: Sum) -> Callable[[], None]:
        self._planned.append(total)
        total.ranks = self.ranks
        waiting, slow, clock_now = self.waiting, self.slow, time.perf_counter

        def run() -> None:
            slow.pause()
            began = clock_now()
            total.start()
            idle, _ = total.wait(waiting.limit_seconds, waiting.meanwhile)
            waiting.seconds += idle
            waiting.moved_seconds += clock_now() - began - idle
            slow.resume()

        return run

    def free(self) -> None:
        """Let all sums go; none may be under way."""
        for total in self._planned:
            total.free()
        self._planned.clear()


class DeviceLine(TensorLine):
    """A line whose buffers lie on a device, summed there by `sums`; to count and to limit, the `line` of the host.

    `takes_pointers`: MPI carries out rounds between devices, and finds largest values; else sums alone can be asked for. `why` that is known, for the summary.
    """

    def __init__(self, line: TensorLine, sums: DeviceSums, takes_pointers: bool, why: str = "") -> None:
        super().__init__(sums, line.weights, line.waiting, line.slow, line.ranks)
        self.sums, self.takes_pointers, self.gpu_mpi = sums, takes_pointers, (takes_pointers, why)
        doubling = RecursiveDoubling()
        doubling.open(self.comm)
        self.direct = DirectSums(doubling, sums.kernels)

    def _rounds(self, rounds: Sequence[Round], buffer: Any, largest: bool = False) -> Sum:
        return DirectSum(self.direct, buffer, rounds, largest)

    def free(self) -> None:
        """Let all sums go; none may be under way."""
        super().free()
        self.sums.free()


def sums_there(strategy: Any, kernels: Any) -> DeviceLine | None:
    """Return a grid's line that sums what lies on its device; None where nobody else is on it (Collective on the line)."""
    if strategy.line.size == 1:
        return None
    widest = max(strategy.net.widths) * strategy.m * strategy.net.dtype.itemsize
    found: Any = choose(strategy.job, kernels, strategy.across, partial(make_collective, strategy.summing), widest)
    return DeviceLine(strategy.parts, found.sums, *found.gpu_mpi)


class PaperLine:
    """Another rank of a line, to find how its parts are cut; nothing can be summed."""

    def __init__(self, line: TensorLine, rank: int) -> None:
        self.rank, self.size, self.edges = rank, line.size, line.edges

    def sum(self, buffer: Array) -> Callable[[], None]:
        """Refuse."""
        raise AssertionError("a line on paper sums nothing")

    most = sum
