"""Launch what is launched over and over as one CUDA graph, so that a step of many small kernels does not wait for the host to launch each.

    the first time     one by one: code is loaded, scratch memory taken
    the second         given to a stream that records it, then the graph is launched
    from then on       the graph is launched

A recording has the addresses and numbers that were given; what lies there may change. (CUDA Programming Guide, "CUDA Graphs".)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml_kernels.launch import Gpu, NotRecorded

MOST = 4
"""Of the numbers that a `Recorded` is called with, how many are recorded."""


class Recorded:
    """What `go(*numbers)` launches in the current stream, the same for the same numbers, without waiting for the device; called as `go` is.

    It is launched one by one for ever where it cannot be recorded: `refusal` says why.
    """

    def __init__(self, gpu: Gpu, go: Callable[..., object]) -> None:
        self.gpu, self.go = gpu, go
        self.begun: set[tuple[float, ...]] = set()
        self.graphs: dict[tuple[float, ...], tuple[Any, list[Any]]] = {}
        self.refusal = ""

    def __call__(self, *numbers: float) -> None:
        """Do what `go` does."""
        if self.gpu.records and numbers in self.begun and numbers not in self.graphs and not self.refusal:
            self._record(numbers)
        if numbers in self.graphs:
            graph, _ = self.graphs[numbers]
            graph.launch(self.gpu.cupy.cuda.get_current_stream())
            self.gpu.n_graphs += 1
            return
        self.go(*numbers)
        if len(self.begun) < MOST:
            self.begun.add(numbers)

    def _record(self, numbers: tuple[float, ...]) -> None:
        """Record `go`; an error that is its own comes again when it is called without recording."""
        stream = self.gpu.recorder
        with self.gpu.recording() as held, stream:
            try:
                stream.begin_capture()
                self.go(*numbers)
            except (NotRecorded, RuntimeError) as error:  # of CUDA's, and of CuPy's own, which refuses cuBLAS and copies from and to the host
                self.refusal = str(error) or repr(error)
            finally:
                try:
                    graph = stream.end_capture()
                except RuntimeError as error:
                    self.refusal = self.refusal or str(error) or repr(error)
        if not self.refusal:
            self.graphs[numbers] = graph, held
