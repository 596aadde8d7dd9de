"""Look at a process of this host from outside: Linux tells of each whether it runs, sleeps or is stopped, and the CPU time of its threads and its children."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

PROC = "/proc"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Glimpse(NamedTuple):
    """State letter of the main thread, when the process was started, and the CPU time of its main thread, both in ticks of the kernel."""

    letter: str
    started: int
    ticks: int


def glimpse(pid: int) -> Glimpse | None:
    """Return what the kernel says of a process; None if it has ended, OSError where it cannot be asked."""
    try:
        words = _words(f"{PROC}/{pid}/task/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    letter = words[0].decode()
    return None if letter in "ZX" else Glimpse(letter, int(words[19]), int(words[11]) + int(words[12]))


def spent() -> dict[int, int]:
    """Return of each process the ticks that it has taken with all its threads and with what it has started; what cannot be read is left out."""
    parents, found = dict[int, int](), dict[int, int]()
    with contextlib.suppress(OSError):
        for pid in (int(name) for name in os.listdir(PROC) if name.isdecimal()):
            with contextlib.suppress(OSError, IndexError):
                words = _words(f"{PROC}/{pid}/stat")
                parents[pid], found[pid] = int(words[1]), sum(map(int, words[11:15]))  # the last two: of children that have ended
    total = dict(found)
    for pid, ticks in found.items():
        above, seen = parents[pid], {pid}
        while above in total and above not in seen:  # numbers given anew meanwhile may make a ring
            total[above] += ticks
            seen.add(above)
            above = parents[above]
    return total


def own() -> tuple[int, int]:
    """Return when this process was started, and a number for the numbering of processes that it lives in: those of another are not to be looked up here.

    0, 0 where none can be looked up.
    """
    try:
        me, space = glimpse(os.getpid()), os.stat(f"{PROC}/self/ns/pid").st_ino
    except OSError:
        return 0, 0
    return (me.started, space) if me is not None else (0, 0)


def _words(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        return file.read().rpartition(b")")[2].split()
