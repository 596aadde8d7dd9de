"""Sum a device's buffers over a line: to the parts of layers, a line like any other.

    kernels  ->  buffer, on the device  ->  what sums there, whichever way it takes                       ->  buffer  ->  kernels
    kernels  ->  buffer, on the device  ->  the host's copy, pinned  ->  largest values, or rounds        ->  buffer  ->  kernels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpidml.core.flat import Array
from mpidml.core.rounds import Round


class LineOnDevice:
    """A `Carrier` of device arrays over `line`, one of the host's; `gpu`: what launches kernels. `there`: the same line, whose sums take device arrays.

    Each call waits for the device once; what goes through the host is copied there and back. Without `there` sums do, too.
    """

    def __init__(self, line: Any, gpu: Any, there: Any = None) -> None:
        self.line, self.gpu, self.there, self.rank, self.size, self.edges = line, gpu, there, line.rank, line.size, line.edges

    def sum(self, buffer: Any) -> Callable[[], None]:
        """Return the call that sums `buffer` (Collective, as the line's)."""
        if self.there is None:
            return self._through(buffer, self.line.sum)
        call = self.there.sum(buffer)

        def run() -> None:
            self.gpu.no_recording("ranks sum within it")
            self.gpu.cupy.cuda.get_current_stream().synchronize()  # a wait for the own device is none for other ranks
            call()

        return run

    def most(self, buffer: Any) -> Callable[[], None]:
        """Return the call that leaves each element's largest value."""
        return self._through(buffer, self.line.most)

    def carry(self, rounds: Sequence[Round], buffer: Any) -> Callable[[], None]:
        """Return the call that carries out `rounds`."""
        return self._through(buffer, lambda host: self.line.carry(rounds, host))

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
