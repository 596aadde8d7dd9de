"""Watch from a thread what the main thread waits for, tell the other ranks, and end the job with one report when a wait has become a hang.

    main thread    compute | Barrier 17 ............................................
    watchdog          .  .  .  publish . look . look . look .. verdict -> report, Abort        one look a second

It calls MPI for Abort alone. What it knows of other ranks it reads from the host's table and asks of other hosts; who decides is `judge`.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from mpidml.core.current_wait import MAIN, Call, Wait
from mpidml.runtime.host_table import COMPUTES, FAILED, LEFT, WAITS, HostTable
from mpidml.runtime.judge import Judge, Verdict
from mpidml.runtime.neighbours import Look, Neighbours
from mpidml.runtime.other_hosts import OtherHosts
from mpidml.runtime.sites import site

TICK_SECONDS = 1.0
LOOK_AFTER_SECONDS = 2.0
"""A shorter wait is none to look around in."""
LIMIT_SECONDS = 300.0
MOST_LINES = 16


class Watchdog:
    """The watchdog of this process. `ends(text)` prints a report and ends all ranks; `name()` is this rank's in reports."""

    def __init__(self, ends: Callable[[str], Any], name: Callable[[], str]) -> None:
        self.ends, self.name = ends, name
        self.judge = Judge(LIMIT_SECONDS)
        self.table: HostTable | None = None
        self.neighbours: Neighbours | None = None
        self.others: OtherHosts | None = None
        self.left_at, self.has_missed, self.greeted = 0.0, False, 0
        self.main = threading.main_thread().ident
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def attach(self, host: Any, comm: Any, token: str) -> None:
        """Know the other ranks of the job `comm`, of which `host` are those of this host (Collective on comm)."""
        leader = host.bcast(comm.rank)
        table = HostTable(host, comm.rank)
        self.neighbours = Neighbours(table)
        if host.size < comm.size:
            self.others = OtherHosts(comm, leader, token)
        self.table = table
        self._publish(time.monotonic(), MAIN.now)

    def limit(self, seconds: float) -> None:
        """End waits after so many seconds from now on."""
        self.judge.limit_seconds = seconds

    def leaves(self) -> None:
        """Tell that this rank's program has come to its end."""
        self.left_at, self.judge.grace_seconds = time.monotonic(), 3 * self.tick_seconds
        self._publish(self.left_at, MAIN.now)

    def fails(self) -> None:
        """Tell that this rank ends the job, and says why."""
        if self.table is not None:
            table, self.table = self.table, None  # which is the last that it tells
            table.own["state"] = FAILED

    @property
    def another_failed(self) -> bool:
        """Whether another rank of this host has said why it ends the job."""
        return self.table is not None and bool((self.table.rows["state"] == FAILED).any())

    @property
    def tick_seconds(self) -> float:
        """Return the seconds between looks: a short limit needs more of them."""
        return min(TICK_SECONDS, self.judge.limit_seconds / 4)

    def _run(self) -> None:
        while True:
            try:
                self._sleep(self.tick_seconds)
                now = time.monotonic()
                verdict = self.tick(now)
            except Exception as error:  # uncaught it would end all ranks, none of which hangs
                self._misses(error)
                continue
            if verdict is not None:
                self.end(now, verdict)

    def _misses(self, error: Exception) -> None:
        """Go on after a look that failed, and say so once."""
        if not self.has_missed:
            self.has_missed = True
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"mpidml: {self.name()} a look at the other ranks failed ({type(error).__name__}: {error}); without looks no hang is found\n")
        time.sleep(self.tick_seconds)

    def _sleep(self, seconds: float) -> None:
        """Sleep, and answer other hosts meanwhile."""
        if self.others is None:
            time.sleep(seconds)
            return
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.others.socket], [], [], left)[0]:
                self.others.take(time.monotonic(), self._here)

    def tick(self, now: float) -> Verdict | None:
        """Publish where the main thread stands, look around if it waits for long, and judge."""
        wait = MAIN.now
        self._publish(now, wait)
        greets = self.others is not None and self.greeted < len(self.others.hosts)  # who has answered once can be missed later
        waits_long = wait is not None and now - wait.since > min(LOOK_AFTER_SECONDS, self.judge.limit_seconds / 2)
        if self.others is not None and (greets or waits_long):
            self.greeted += 16
            self.others.ask(wait.call if wait is not None else None)
        looks = self.looks(now, wait.call if wait is not None else None) if waits_long else []
        verdict = self.judge.hear(now, wait if waits_long else None, looks, self.tick_seconds)
        still = MAIN.now
        return verdict if wait is not None and still is not None and still.since == wait.since else None  # it may have ended meanwhile

    def looks(self, now: float, call: Call | None) -> list[Look]:
        """Return what is known of all other ranks."""
        found = self.neighbours.looks(now, call) if self.neighbours is not None else []
        return found + (self.others.looks(now) if self.others is not None else [])

    def _here(self, call: Call | None) -> list[Look]:
        return self.neighbours.looks(time.monotonic(), call, besides=False) if self.neighbours is not None else []

    def _publish(self, now: float, wait: Wait | None) -> None:
        table = self.table
        if table is None:
            return
        at = site(self._frame())
        if self.left_at:
            table.publish(now, LEFT, self.left_at, "its program has come to its end")
        elif wait is None:
            table.publish(now, COMPUTES, now, f"computes at {at}")
        else:
            table.publish(now, WAITS, wait.since, f"waits at {at}: {_said(wait)}")

    def _frame(self) -> Any:
        return sys._current_frames().get(self.main or 0)

    def end(self, now: float, verdict: Verdict) -> None:
        """Print who waits for whom, and end all ranks."""
        wait, frame = MAIN.now, self._frame()
        if wait is None or frame is None:
            return
        what = f"{_said(wait)}, called at {site(frame)}"
        head = f"{what}, {verdict.text}" if not verdict.text.startswith("rank") else f"{verdict.text}; {what}, lasts since {now - wait.since:.1f} s"
        stack = "".join(traceback.format_stack(frame))
        self.ends(f"{self.name()} WaitTimeout: {head}\n{self.whereabouts(wait.call)}Stack of this rank (most recent call last):\n{stack}")

    def whereabouts(self, call: Call | None = None) -> str:
        """Return a line for each other rank, those that are missing first: where it stands."""
        looks = self.looks(time.monotonic(), call)
        looks.sort(key=lambda look: (bool(look.arrived), look.rank))
        come = {None: "", True: "has come; ", False: "has not come; "}
        lines = [f"    rank {look.rank}: {come[look.arrived]}{look.text}\n" for look in looks[:MOST_LINES]]
        return "".join(lines) + (f"    and {len(looks) - MOST_LINES} more ranks\n" if len(looks) > MOST_LINES else "")


def _said(wait: Wait) -> str:
    try:
        return wait.what if isinstance(wait.what, str) else wait.what()
    except Exception as error:  # what it would have told has changed under it, since another thread asks
        return f"what cannot be told ({type(error).__name__})"
