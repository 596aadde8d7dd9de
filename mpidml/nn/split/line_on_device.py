"""Exchange a device's buffers over a line: to the parts of layers, a line like any other.

    kernels  ->  buffer, on the device  ->  what sums there, whichever way it takes; MPI, that takes its pointers  ->  buffer  ->  kernels
    kernels  ->  buffer, on the device  ->  the host's copy, pinned  ->  largest values                            ->  buffer  ->  kernels
    kernels  ->  what leaves in a round ->  the host's copy, pinned  ->  what comes                                ->  buffer, added there  ->  kernels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from mpidml.core.flat import Array
from mpidml.core.rounds import Move, Round


class LineOnDevice:
    """A `Carrier` of device arrays over `line`, one of the host's; `kernels`: those of the device. `there`: the same line, whose sums take device arrays.

    Where MPI `takes_pointers`, `there` takes all else, too. Each call waits for the device once; what goes through the host is copied there and back. Without
    `there` sums do, too.
    """

    def __init__(self, line: Any, kernels: Any, there: Any = None) -> None:
        self.line, self.kernels, self.gpu, self.there, self.rank, self.size, self.edges = line, kernels, kernels.gpu, there, line.rank, line.size, line.edges
        self.direct = there is not None and there.takes_pointers

    def sum(self, buffer: Any) -> Callable[[], None]:
        """Return the call that sums `buffer` (Collective, as the line's)."""
        return self._through(buffer, self.line.sum) if self.there is None else self._behind(self.there.sum(buffer))

    def most(self, buffer: Any) -> Callable[[], None]:
        """Return the call that leaves each element's largest value."""
        return self._behind(self.there.most(buffer)) if self.direct else self._through(buffer, self.line.most)

    def carry(self, rounds: Sequence[Round], buffer: Any) -> Callable[[], None]:
        """Return the call that carries out `rounds`, none of which has weights."""
        if self.direct:
            return self._behind(self.there.carry(rounds, buffer))
        calls = [self._staged(each, buffer) for each in rounds]

        def run() -> None:
            for call in calls:
                call()

        return run

    def _behind(self, call: Callable[[], object]) -> Callable[[], None]:
        """Return what makes `call` once the device has done what it was given: a wait for the own device is none for other ranks."""

        def run() -> None:
            self.gpu.no_recording("ranks sum within it")
            self.gpu.cupy.cuda.get_current_stream().synchronize()
            call()

        return run

    def _staged(self, each: Round, buffer: Any) -> Callable[[], None]:
        """Return the call that brings down what leaves, once for whoever gets it, and up what comes, where it is added behind what came before."""
        leaves, comes = list(dict.fromkeys(move[1:] for move in each.sends)), [move[1:] for move in each.receives]
        edges = [0, *accumulate(hi - lo for lo, hi in (*leaves, *comes))]
        host, places = self.gpu.pinned(edges[-1], buffer.dtype), list(pairwise(edges))
        sends = tuple(Move(move.peer, *places[leaves.index(move[1:])]) for move in each.sends)
        receives = tuple(Move(move.peer, *place) for move, place in zip(each.receives, places[len(leaves) :], strict=True))
        call = self.line.carry((Round(sends, receives, adds=False),), host)
        pairs = [(buffer[lo:hi], host[slice(*place)]) for (lo, hi), place in zip((*leaves, *comes), places, strict=True)]
        down, up = ([pair for pair in of if pair[1].size] for of in (pairs[: len(leaves)], pairs[len(leaves) :]))
        term = self.kernels.zeros(max((given.size for _, given in up), default=0), buffer.dtype) if each.adds else None

        def run() -> None:
            self.gpu.no_recording("ranks meet within it")  # before the others are called
            stream = self.gpu.cupy.cuda.get_current_stream()
            for source, out in down:
                source.get(out=out, blocking=False)
            stream.synchronize()
            call()
            for target, given in up:
                if term is None:
                    target.set(given, stream)
                else:
                    term[: given.size].set(given, stream)
                    self.kernels.add(target, term[: given.size])

        return run

    def _through(self, buffer: Any, plan: Callable[[Array], Callable[[], object]]) -> Callable[[], None]:
        host = self.gpu.pinned(buffer.shape, buffer.dtype)
        call, cuda = plan(host), self.gpu.cupy.cuda

        def run() -> None:
            self.gpu.no_recording("ranks sum within it")  # before the others are called
            if buffer.size:
                buffer.get(out=host)
            call()
            if buffer.size:
                buffer.set(host, cuda.get_current_stream())

        return run
