"""Wait for a quiet machine before a measurement, and repeat one that others came into: on shared cores a quiet round is rare by chance alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.machine import Watch
from benchmarks.rounds import QUIET, Sample
from mpidml.runtime.comm import CountedComm

LOOK_SECONDS = 0.5


class Patience:
    """Measure when others are quiet, for as long as `seconds` of waiting and repeating last; then take what comes (Collective on comm)."""

    def __init__(self, comm: CountedComm, seconds: float) -> None:
        self.comm, self.left = comm, seconds

    def over(self, comm: CountedComm) -> Patience:
        """Return as much patience over fewer ranks."""
        return Patience(comm, self.left)

    def measure(self, measure: Callable[[], Sample]) -> Sample:
        """Return a quiet sample, or the quietest of those that patience allowed; nothing but what others took decides which."""
        best: Sample | None = None
        while True:
            start = time.perf_counter()
            self._wait()
            waited = time.perf_counter() - start
            sample = measure()
            best = sample if best is None or sample.others < best.others else best
            quiet = self.comm.bcast(best.others < QUIET)
            self.left = self.comm.bcast(self.left - (waited if quiet else time.perf_counter() - start))
            if quiet or self.left <= 0:
                return best

    def _wait(self) -> None:
        """Wait until others are quiet for a moment, while the other ranks sleep."""
        if self.comm.rank == 0 and self.left > 0:
            end = time.perf_counter() + self.left
            while time.perf_counter() < end:
                with Watch() as watch:
                    time.sleep(LOOK_SECONDS)
                if watch.others() < QUIET:
                    break
        self.comm.Barrier()
