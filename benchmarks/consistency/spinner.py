"""Take CPU by turns: `python spinner.py CORE N BEGIN HALF_PERIOD UNTIL` spins N processes on one core, first off, then on, and prints their seconds of CPU.

BEGIN and UNTIL are seconds of the clock that all processes of a host share (time.perf_counter on Linux).
"""

from __future__ import annotations

import os
import sys
import time


def is_on(now: float, begin: float, half_period: float) -> bool:
    """Return whether the hog is on: not in the first half period after `begin`, in the second, and so on by turns."""
    return now >= begin and int((now - begin) / half_period) % 2 == 1


def spin(begin: float, half_period: float, until: float) -> float:
    """Spin while the hog is on, sleep otherwise, end at `until`; return the seconds of CPU."""
    while (now := time.perf_counter()) < until:
        if is_on(now, begin, half_period):
            while time.perf_counter() < now + 1e-3:
                pass
        else:
            following = begin + half_period * (max(int((now - begin) / half_period), 0) + 1)
            time.sleep(max(min(following, until) - time.perf_counter(), 1e-4))
    return time.process_time()


def main() -> None:
    """Pin, fork, spin, and add up."""
    core, n = int(sys.argv[1]), int(sys.argv[2])
    begin, half_period, until = map(float, sys.argv[3:6])
    os.sched_setaffinity(0, {core})
    children = []
    for _ in range(n - 1):
        if (child := os.fork()) == 0:
            spin(begin, half_period, until)
            os._exit(0)
        children.append(child)
    used = spin(begin, half_period, until)
    for child in children:
        _, _, resources = os.wait4(child, 0)
        used += resources.ru_utime + resources.ru_stime
    print(used)


if __name__ == "__main__":
    main()
