"""Measure which share of its CPU other processes take from this rank, never counting the rank's own load.

    the thread   run  wait  run  wait  wait  run        share = wait / (run + wait)
    its core     own  hog   own  hog   hog   own        sleeping counts as neither, so an idle rank is not a robbed one

The kernel keeps run and wait of each thread ("schedstat"). Where it does not, the cores are asked instead ("stat"), which is coarser.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

Reader = Callable[[], tuple[float, float]]
"""Gives two sums since some begin: seconds that this rank ran (or could have), and seconds that others took from it."""

ENOUGH_SECONDS = 0.01  # the scheduler gives turns of 2 to 4 ms: within less than a few of them a share jumps between 0 and 1
IDLE_PERIODS = 10
STAT_SECONDS = 1.0  # /proc/stat counts in ticks of 10 ms: a second makes an error of 1% a core
PROC = Path("/proc")


class Occupancy:
    """Estimate the share of CPU (0..1) that others take: `occupancy(now)`, with `now` in seconds of any clock that only goes forward.

    The first call begins the measurement and returns 0. A later call measures if `period_seconds` have passed since the last measurement;
    else it only compares. A thread that mostly sleeps tells little: the estimate stays, and the measurement goes on, until the thread has wanted
    ENOUGH_SECONDS of CPU. A thread that did not within IDLE_PERIODS periods has nothing that could be taken: the estimate becomes 0.

    `read` replaces what is read. `source` says what is: "schedstat", "stat" (at most once in STAT_SECONDS), "given", or "none": always 0.
    A source that can no longer be read becomes "none": a measurement does not end a run.
    """

    def __init__(self, read: Reader | None = None, period_seconds: float = 0.1, proc: Path = PROC) -> None:
        self.source = "given"
        if read is None:
            self.source, read = next(((name, found) for name, make in SOURCES.items() if (found := make(proc)) is not None), ("none", None))
        self._read = read
        self._period = max(period_seconds, STAT_SECONDS) if self.source == "stat" else period_seconds
        self._share = self._run = self._wait = 0.0
        self._since = math.nan  # when the present measurement began
        self._due = -math.inf if read is not None else math.inf

    def __call__(self, now: float) -> float:
        """Return the present estimate."""
        if now >= self._due:
            self._measure(now)
        return self._share

    def _measure(self, now: float) -> None:
        assert self._read is not None
        self._due = now + self._period
        try:
            run, wait = self._read()
        except (OSError, ValueError):
            self.source, self._share, self._due = "none", 0.0, math.inf
            return
        wanted, taken = run + wait - self._run - self._wait, wait - self._wait
        if math.isnan(self._since):
            pass
        elif wanted >= ENOUGH_SECONDS:
            self._share = min(1.0, max(0.0, taken / wanted))  # counters of different grain may differ by a tick
        elif now - self._since >= IDLE_PERIODS * self._period:
            self._share = 0.0
        else:
            return
        self._since, self._run, self._wait = now, run, wait


def schedstat(proc: Path = PROC) -> Reader | None:
    """Return a reader of the calling thread's seconds on a core and seconds in the queue for one, None where the kernel keeps none.

    It sees only what this thread missed: load on other cores, of siblings or of strangers, does not count. What shares its core does,
    and that may be another thread of this rank, or a sibling rank on the same core.
    """
    path = (proc / "thread-self").resolve() / "schedstat"  # whichever thread reads it later, it stays this thread's

    def read() -> tuple[float, float]:
        run, wait = path.read_bytes().split()[:2]
        return int(run) * 1e-9, int(wait) * 1e-9

    try:
        return read if any(read()) else None  # a thread that reads has run: zeros are no count
    except (OSError, ValueError):
        return None


def stat(proc: Path = PROC, cores: Collection[int] | None = None, own: Callable[[], float] = time.process_time) -> Reader | None:
    """Return a reader of all time of `cores` (those this process may use) in two parts: idle or this process's `own`, and the others'.

    It knows what cores do, not what this rank missed. So sibling ranks on the same cores count as others, and so do processes that
    took a core which this rank did not want. Other containers of the host count, a limit on this container's CPU does not.
    """
    path, tick = proc / "stat", 0.01

    def read() -> tuple[float, float]:
        busy = idle = 0
        for name, *ticks in map(str.split, path.read_text().splitlines()):
            if name in names:
                user, nice, system, rest, iowait, irq, softirq, steal = map(int, ticks[:8])  # guests are within user
                busy += user + nice + system + irq + softirq + steal
                idle += rest + iowait
        mine = own()
        return idle * tick + mine, busy * tick - mine

    try:
        path.stat()  # before the calls that only Linux has
        tick = 1 / os.sysconf("SC_CLK_TCK")
        names = {f"cpu{core}" for core in (os.sched_getaffinity(0) if cores is None else cores)}
        return read if sum(read()) > 0 else None
    except (OSError, ValueError):
        return None


SOURCES: dict[str, Callable[[Path], Reader | None]] = {"schedstat": schedstat, "stat": stat}
