"""Tell of the other ranks of this host what they do: one that computes for long is slow, one that is stopped or gone will never come.

    WORKS     not in a wait, and its main thread takes CPU time, or waits for the disk; or all its threads and children together a tenth of a core
    IDLE      not in a wait, and takes none, or what its watchdog takes
    WAITS     in a wait itself
    STOPPED   state T in /proc: somebody has sent it SIGSTOP          GONE   no process any more, by no error
    LEFT      its program has come to its end                         SILENT   its host gives no answer any more; UNKNOWN: and never gave one
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mpidml.core.current_wait import Call
from mpidml.runtime.host_table import LEFT as HAS_LEFT
from mpidml.runtime.host_table import WAITS as IS_WAITING
from mpidml.runtime.host_table import HostTable, reached
from mpidml.runtime.processes import TICKS_PER_SECOND, Glimpse, glimpse, spent

WORKS, IDLE, WAITS, STOPPED, GONE, LEFT, SILENT, UNKNOWN = "works", "idle", "waits", "stopped", "gone", "left", "silent", "unknown"
LOST = (STOPPED, GONE, LEFT, SILENT)
STALE_SECONDS = WORKED_SECONDS = 5.0
"""A row that is older is no news: its watchdog does not run, as under code that keeps the interpreter to itself; and whoever took CPU time within as many works."""
MEASURED_SECONDS, SHARE = 0.5, 0.1
"""Threads and children work if they take more than this share of a core; so much a thread that looks around now and then does not take."""
UNSEEN = Glimpse("?", 0, 0)


class Look(NamedTuple):
    """What is known of a rank: its state, whether it has come to the call that was asked about (None: not known), where it stands, and how old that is."""

    rank: int
    state: str
    arrived: bool | None
    text: str
    silent_seconds: float = 0.0


class Neighbours:
    """The ranks of this host, besides the own where `besides` says so."""

    def __init__(self, table: HostTable) -> None:
        self.table, self.space = table, int(table.own["space"])
        self.worked: dict[int, tuple[int, float]] = {}  # of a rank: its main thread's CPU ticks, and when they were seen to grow
        self.together: dict[int, tuple[int, float]] = {}  # of a rank: the ticks of all its threads and children, and when they were counted
        self.spent: dict[int, int] = {}  # ticks of all processes, counted at most once a look

    def looks(self, now: float, call: Call | None, besides: bool = True) -> list[Look]:
        """Look at all of them."""
        own = int(self.table.own["rank"]) if besides else -1
        self.spent = {}
        return [self._look(row, now, call) for row in self.table.rows if int(row["rank"]) != own]

    def _look(self, row: Any, now: float, call: Call | None) -> Look:
        rank, pid = int(row["rank"]), int(row["pid"])
        n_calls = reached(row, call.key) if call is not None else None
        arrived = None if call is None or n_calls is None else n_calls >= call.number
        where = bytes(row["text"]).decode(errors="replace")
        silent = now - float(row["beat"])
        waits = int(row["state"]) == IS_WAITING
        if waits:
            where += f", since {now - float(row['since']):.1f} s"
        try:
            seen = glimpse(pid) if self.space and int(row["space"]) == self.space else UNSEEN
        except OSError:  # no descriptor is left, say
            seen = UNSEEN
        if seen is UNSEEN:  # its process cannot be looked up here
            if silent > STALE_SECONDS:
                return Look(rank, SILENT, arrived, f"it gives no sign of life; when seen last, it {where}", silent)
            return Look(rank, LEFT if int(row["state"]) == HAS_LEFT else WAITS if waits else WORKS, arrived, where)
        if seen is None or seen.started != int(row["started"]):
            return Look(rank, GONE, arrived, f"its process {pid} has ended; when seen last, it {where}", silent)
        if seen.letter == "T":
            return Look(rank, STOPPED, arrived, f"its process {pid} is stopped (state T in /proc); when seen last, it {where}", silent)
        if int(row["state"]) == HAS_LEFT:
            return Look(rank, LEFT, arrived, where, max(0.0, now - float(row["since"])))
        if waits and silent < STALE_SECONDS:
            return Look(rank, WAITS, arrived, where)
        ticks, at = self.worked.setdefault(rank, (seen.ticks, now - WORKED_SECONDS))
        if seen.ticks != ticks or self._work_together(rank, pid, now):
            at = now
            self.worked[rank] = seen.ticks, now
        works = now - at < WORKED_SECONDS or seen.letter in "RDt"  # t: a debugger holds it
        return Look(rank, WORKS if works else IDLE, arrived, where)

    def _work_together(self, rank: int, pid: int, now: float) -> bool:
        """Whether its threads and children took CPU time since they were last counted."""
        before, since = self.together.get(rank, (0, 0.0))
        if now - since < MEASURED_SECONDS:
            return False
        self.spent = self.spent or spent()
        ticks = self.spent.get(pid, 0)
        self.together[rank] = ticks, now
        return since > 0 and ticks - before > SHARE * TICKS_PER_SECOND * (now - since)
