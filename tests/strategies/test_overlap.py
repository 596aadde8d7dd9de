"""How much of the sums backward hides, on a virtual clock: kernels and transfers take what is injected, and what starts them is the strategy that trains."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from mpidml.collectives.base import Sum
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.stepping import Stepper
from tests.strategies.test_data_parallel import prepared

BUCKET_SECONDS, N_BUCKETS = 5e-3, 5
TOTAL = N_BUCKETS * BUCKET_SECONDS
MOST = 0.4
"""Of all communication, at most so much may be left when a rank has computed."""


class Line:
    """One link: what is given to it goes one after the other."""

    def __init__(self) -> None:
        self.now = self.free_at = 0.0


class Transfer(Sum):
    """A sum that takes its turn on a line besides, for so many seconds."""

    def __init__(self, line: Line, seconds: float, real: Sum) -> None:
        self.line, self.seconds, self.real, self.ends = line, seconds, real, 0.0

    def start(self) -> None:
        self.ends = self.line.free_at = max(self.line.free_at, self.line.now) + self.seconds
        self.real.start()

    def test(self) -> bool:
        return self.line.now >= self.ends and self.real.test()

    def wait(self, limit_seconds: float = 300.0, meanwhile: object = None) -> tuple[float, int]:
        found = self.real.wait(limit_seconds)
        self.line.now = max(self.line.now, self.ends)
        return found

    def free(self) -> None:
        self.real.free()


class Timed(NamedTuple):
    """Seconds of a step, those that it computes, and when each bucket's gradient was final, in the order of the sums."""

    step: float
    compute: float
    ready: list[float]


def timed(comm, kernel_seconds, collective="recursive_doubling", bucket=1):
    """Make one step of a net of five layers, each kernel of so many seconds; all sums take TOTAL seconds, half of them after the update where ranks own parts."""
    counted = CountedComm(comm)
    strategy, whole = prepared(counted, collective=collective, bucket=bucket, hidden=(24, 20, 16, 12), steps=1, hold_out=0.0, progress_thread="off")
    driver, line = strategy.driver, Line()
    began, ready, ended = [], [], []
    for of in driver.buckets:
        halves = of.halves
        seconds = TOTAL / len(driver.buckets) / (2 if halves.shares else 1)
        of.halves = halves._replace(reduce=Transfer(line, seconds, halves.reduce), gather=Transfer(line, seconds if halves.shares else 0.0, halves.gather))
    report, update, waits = driver._report, driver._update, {of.lo for of in driver.buckets}

    def after_a_kernel(lo: int, hi: int) -> None:
        if not began:
            began.append(line.now)
        line.now += kernel_seconds
        if lo < hi and lo in waits:
            ready.append(line.now - began[0])
        report(lo, hi)

    def after_computing() -> None:
        ended.append(line.now - began[0])
        update()
        ended.append(line.now - began[0])

    driver._report, driver._update = after_a_kernel, after_computing
    whole.drive()
    whole.end(None)
    counted.free()
    compute, step = ended
    return Timed(step, compute, ready)


def law(found, seconds, behind=0.0):
    """Return when one link has taken all sums, one after the other, each `seconds` long and once its gradient is final, and what comes `behind` them."""
    n = len(found.ready)
    return max(found.compute, *(at + (n - k) * seconds for k, at in enumerate(found.ready))) + behind


SPEEDS = [3e-3, 2e-3, 1e-3, 1e-4]
"""Of a kernel; a layer's backward has three, its sum 5 ms."""


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kernel_seconds", SPEEDS)
def test_a_step_takes_what_a_pipeline_of_one_link_takes(comm, kernel_seconds):
    found = timed(comm, kernel_seconds)
    assert len(found.ready) == N_BUCKETS
    assert found.step == pytest.approx(law(found, BUCKET_SECONDS), abs=1e-12)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kernel_seconds", SPEEDS)
def test_halves_that_bring_weights_together_hide_behind_nothing(comm, kernel_seconds):
    """So ring and its like leave at least half of their bytes to the end, which buys a P-th of the optimizer's memory and update."""
    found = timed(comm, kernel_seconds, "ring")
    assert found.step == pytest.approx(law(found, BUCKET_SECONDS / 2, TOTAL / 2), abs=1e-12)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kernel_seconds", SPEEDS[:2])
def test_backward_as_long_as_the_sums_hides_most_of_them(comm, kernel_seconds):
    found = timed(comm, kernel_seconds)
    assert found.step <= found.compute + MOST * TOTAL
    assert found.step == pytest.approx(found.compute + BUCKET_SECONDS, abs=1e-12), "the first layer's, which is final last"


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("broken", ["sums after backward", "one bucket"])
def test_the_bound_catches(comm, broken, monkeypatch):
    if broken == "one bucket":
        found = timed(comm, SPEEDS[0], bucket=1 << 24)
        assert len(found.ready) == 1
    else:
        monkeypatch.setattr(Stepper, "_report", lambda self, lo, hi: None)
        found = timed(comm, SPEEDS[0])
        assert found.step > law(found, BUCKET_SECONDS) + BUCKET_SECONDS
    assert found.step == pytest.approx(found.compute + TOTAL, abs=1e-12) and found.step > found.compute + MOST * TOTAL
