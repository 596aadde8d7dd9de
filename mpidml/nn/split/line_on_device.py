"""Sum a device's buffers over a line by way of the host: to the parts of layers, a line like any other.

    kernels  ->  buffer, on the device  ->  the host's copy, pinned  ->  its sum over the ranks  ->  buffer  ->  kernels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpidml.core.flat import Array
from mpidml.core.rounds import Round


class LineOnDevice:
    """A `Carrier` of device arrays over `line`, one of the host's; `gpu`: what launches kernels.

    Each call waits for the device once, and copies the buffer there and back.
    """

    def __init__(self, line: Any, gpu: Any) -> None:
        self.line, self.gpu, self.rank, self.size, self.edges = line, gpu, line.rank, line.size, line.edges

    def sum(self, buffer: Any) -> Callable[[], None]:
        """Return the call that sums `buffer` (Collective, as the line's)."""
        return self._through(buffer, self.line.sum)

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
