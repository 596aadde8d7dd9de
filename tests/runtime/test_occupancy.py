"""Occupancy sees what others take from a rank, at once, and nothing of the rank's own load."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpidml.runtime.occupancy import IDLE_PERIODS, Occupancy, Reader, schedstat, stat

PERIOD = 0.1
STEP = PERIOD / 10


class Core:
    """A core on a virtual clock. The rank wants `demand` of it, `hogs` others want all of it, and each gets an equal part."""

    def __init__(self) -> None:
        self.now = self.run = self.wait = self.idle = 0.0
        self.demand, self.hogs, self.n_reads = 1.0, 0, 0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.run += seconds * self.demand / (self.hogs + 1)
        self.wait += seconds * self.demand * self.hogs / (self.hogs + 1)
        self.idle += seconds * (1 - self.demand) * (self.hogs == 0)

    def read(self) -> tuple[float, float]:
        self.n_reads += 1
        return self.run, self.wait

    def total_busy(self) -> tuple[float, float]:
        """A broken reader: whatever keeps the core busy was taken by others."""
        return self.idle, self.now - self.idle


def spend(core: Core, occupancy: Occupancy, periods: float) -> float:
    """Ask often for that many periods, as a worker does; return the last estimate."""
    share = occupancy(core.now)
    for _ in range(round(periods * PERIOD / STEP)):
        core.pass_time(STEP)
        share = occupancy(core.now + 1e-9)  # a sum of steps may fall short of a period by a rounding
    return share


def check_own_load_is_no_load(read: Callable[[Core], Reader]) -> None:
    core = Core()
    occupancy = Occupancy(read(core), PERIOD)
    assert spend(core, occupancy, 3) < 0.01
    core.demand = 0.4
    assert spend(core, occupancy, 3) < 0.01


def test_the_own_load_alone_counts_as_nothing() -> None:
    check_own_load_is_no_load(lambda core: core.read)


def test_a_measure_that_counts_the_own_load_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_own_load_is_no_load(lambda core: core.total_busy)


@pytest.mark.parametrize("hogs", [1, 2, 3, 7])
@pytest.mark.parametrize("demand", [1.0, 0.2])
def test_hogs_count_within_the_period_after_they_begin_and_no_longer_than_that_after_they_end(hogs: int, demand: float) -> None:
    core = Core()
    core.demand = demand
    occupancy = Occupancy(core.read, PERIOD)
    assert spend(core, occupancy, 2.5) < 0.01
    core.hogs = hogs  # in the middle of a period: the whole one after it shows all of it
    assert 0.01 < spend(core, occupancy, 1) < hogs / (hogs + 1)
    assert spend(core, occupancy, 1) == pytest.approx(hogs / (hogs + 1))
    core.hogs = 0
    assert spend(core, occupancy, 2) < 0.01


def test_it_reads_once_a_period_however_often_it_is_asked() -> None:
    core = Core()
    occupancy = Occupancy(core.read, PERIOD)
    for _ in range(1000):
        occupancy(0.0)
    assert core.n_reads == 1
    for i in range(1000):
        occupancy(PERIOD * i / 1001)
    assert core.n_reads == 1
    occupancy(PERIOD)
    assert core.n_reads == 2
    occupancy(50 * PERIOD)
    occupancy(50 * PERIOD + PERIOD / 2)
    assert core.n_reads == 3, "a pause is not made up for"


def test_a_thread_that_sleeps_keeps_the_estimate_for_a_while() -> None:
    core = Core()
    occupancy = Occupancy(core.read, PERIOD)
    core.hogs = 3
    assert spend(core, occupancy, 2) == pytest.approx(0.75)
    core.demand = 0.0
    assert spend(core, occupancy, IDLE_PERIODS - 1) == pytest.approx(0.75)
    assert spend(core, occupancy, 2) == 0.0, "from a thread that wants nothing nothing is taken"
    core.demand = 1.0
    assert spend(core, occupancy, 2) == pytest.approx(0.75)


def test_a_thread_that_wants_little_is_measured_over_several_periods() -> None:
    core = Core()
    occupancy = Occupancy(core.read, PERIOD)
    core.demand, core.hogs = 0.04, 1  # 4 ms of each period: three make enough
    assert spend(core, occupancy, 2.5) == 0.0
    assert spend(core, occupancy, 1) == pytest.approx(0.5)
    core.hogs = 0
    assert spend(core, occupancy, 2) == pytest.approx(0.5)
    assert spend(core, occupancy, 4) < 0.01


def test_a_source_that_vanishes_does_not_end_the_run(tmp_path: Path) -> None:
    lay_thread(tmp_path, 1_000_000_000, 0)
    occupancy = Occupancy(proc=tmp_path)
    assert occupancy(0.0) == 0.0
    lay_thread(tmp_path, 1_050_000_000, 50_000_000)
    assert occupancy(PERIOD) == pytest.approx(0.5)
    (tmp_path / "thread-self" / "schedstat").unlink()
    assert occupancy.source == "schedstat" and occupancy(2 * PERIOD) == 0.0 and occupancy.source == "none"


def lay_thread(proc: Path, run: int, wait: int) -> None:
    """Lay out the times of the calling thread, in nanoseconds, as the kernel shows them."""
    (proc / "thread-self").mkdir(exist_ok=True)
    (proc / "thread-self" / "schedstat").write_text(f"{run} {wait} 7\n")


def lay_cores(proc: Path, *cores: tuple[int, int, int]) -> None:
    """Lay out (user, idle, steal) of cores, in ticks of 10 ms, as the kernel shows them."""
    lines = [f"cpu{i} {user} 0 0 {idle} 0 0 0 {steal} {user} 0" for i, (user, idle, steal) in enumerate(cores)]
    (proc / "stat").write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5 0", "ctxt 99", ""]))


@pytest.mark.parametrize(
    ("user", "idle", "steal", "own", "expected"),
    [
        (100, 100, 0, 1.0, 0.0),  # the own load, one of two cores
        (200, 0, 0, 1.0, 0.5),
        (200, 0, 0, 0.5, 0.75),
        (100, 0, 100, 1.0, 0.5),  # another machine on the same host
        (98, 102, 0, 1.0, 0.0),  # its grain is coarser than that of the own time
    ],
)
def test_the_cores_are_asked_where_threads_have_no_times(tmp_path: Path, user: int, idle: int, steal: int, own: float, expected: float) -> None:
    seconds = 3.0
    lay_cores(tmp_path, (1000, 1000, 0), (1000, 1000, 0), (1000, 1000, 0))
    occupancy = Occupancy(stat(tmp_path, {0, 1}, lambda: seconds), 1.0)
    assert occupancy(0.0) == 0.0
    seconds += own
    lay_cores(tmp_path, (1000 + user // 2, 1000 + idle // 2, steal), (1000 + user - user // 2, 1000 + idle - idle // 2, 0), (1100, 1000, 0))
    assert occupancy(1.0) == pytest.approx(expected)


@pytest.mark.parametrize("threads", ["", "0 0 0\n", "odd\n", "1"])
def test_threads_without_times_lead_to_the_cores_at_most_once_a_second(tmp_path: Path, threads: str) -> None:
    lay_cores(tmp_path, *[(100, 100, 0)] * 2000)
    (tmp_path / "thread-self").mkdir()
    (tmp_path / "thread-self" / "schedstat").write_text(threads)
    occupancy = Occupancy(proc=tmp_path)
    assert schedstat(tmp_path) is None and occupancy.source == "stat"
    occupancy(0.0)
    lay_cores(tmp_path, *[(100 + 10**6, 100, 0)] * 2000)
    assert occupancy(0.9) == 0.0 and occupancy(1.0) > 0.9


@pytest.mark.parametrize("text", [None, "", "odd", "cpu 1 2 3 4 5 6 7 8 9 10\n", "cpu0 1 2\n", "cpu0 0 0 0 0 0 0 0 0 0 0\n"])
def test_with_nothing_to_read_the_share_is_always_zero_and_the_source_none(tmp_path: Path, text: str | None) -> None:
    proc = tmp_path / "proc"
    if text is not None:
        proc.mkdir()
        (proc / "stat").write_text(text)
    assert stat(proc, {0}, lambda: 0.0) is None and schedstat(proc) is None
    occupancy = Occupancy(proc=tmp_path / "none")
    assert occupancy.source == "none" and [occupancy(float(i)) for i in range(5)] == [0.0] * 5


def test_on_this_machine_it_gives_a_share() -> None:
    occupancy = Occupancy(period_seconds=0.02)
    if occupancy.source == "none":
        pytest.skip("needs /proc/thread-self/schedstat or /proc/stat")
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < 0.05:
        assert 0.0 <= occupancy(now) <= 1.0
