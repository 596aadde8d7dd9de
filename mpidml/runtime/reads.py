"""Read rows ahead in a background thread, and say how long reading took and how much of that was waited for.

    worker    compute 1..4 ======|compute 5..8 ======|      portion: the rows of some blocks to come, read together
    thread    read 5..8 ---|      read 9..12 ---|           a portion is waited for only where its read takes longer than the computes

One thread, two portions: that which is used, and that which is being read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from mpidml.core.role import Array


class Reads:
    """The reads of one rank. Until they `begin`, all are made when they are wanted. `portion_nbytes`: what is read ahead at once."""

    def __init__(self, portion_nbytes: int, ahead: bool = False) -> None:
        self.portion_nbytes, self.ahead = portion_nbytes, ahead
        self.read_seconds = self.wait_seconds = 0.0
        self.n_early = self.n_late = 0  # portions that were read ahead; reads at once
        self._thread: ThreadPoolExecutor | None = None

    def now(self, read: Callable[[], Any]) -> Any:
        """Read while the caller waits."""
        started = time.perf_counter()
        self.n_late += 1
        found = read()
        seconds = time.perf_counter() - started
        self.read_seconds += seconds
        self.wait_seconds += seconds
        return found

    def later(self, read: Callable[[], Any]) -> Future[tuple[float, Any]]:
        """Begin to read; the thread starts with the first of these."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "mpidml-reads")
        return self._thread.submit(_timed, read)

    def wait(self, coming: Future[tuple[float, Any]]) -> Any:
        """Return what was read; an error of the thread is raised here, with its own traceback."""
        started = time.perf_counter()
        seconds, found = coming.result()
        self.wait_seconds += time.perf_counter() - started
        self.read_seconds += seconds
        self.n_early += 1
        return found

    def begin(self) -> None:
        """Read ahead from now on, and count from 0."""
        self.ahead, self.read_seconds, self.wait_seconds, self.n_early, self.n_late = True, 0.0, 0.0, 0, 0

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None


def _timed(read: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = read()
    return time.perf_counter() - started, found


class Portions:
    """Give items one after the other from portions that are read ahead: `plan(item)` names the items of the portion that begins with it,
    `read(items, place)` reads them all into place 0 or 1 and returns what was read by item.

    Where an item comes that was not planned, it is read at once, and the plan begins anew behind it.
    """

    def __init__(self, reads: Reads, plan: Callable[[Any], list[Any]], read: Callable[[list[Any], int], dict[Any, Any]]) -> None:
        self.reads, self.plan, self.read = reads, plan, read
        self.here: dict[Any, Any] = {}
        self.place = 0
        self.coming: Future[tuple[float, Any]] | None = None
        self.planned: list[Any] = []

    def get(self, item: Any, following: Callable[[Any], Any]) -> Any:
        """Return what was read of an item; `following(item)` is the one that is wanted next to it, None at the end."""
        if item in self.here:
            return self.here[item]
        coming, self.coming = self.coming, None
        self.place = 1 - self.place
        if coming is not None and item in self.planned:
            self.here = self.reads.wait(coming)
        else:
            if coming is not None and not coming.cancel():
                coming.result()  # its place is free only then
            planned = self.plan(item)[:1]
            self.here = self.reads.now(lambda: self.read(planned, self.place))
            self.planned = planned
        after = following(self.planned[-1])
        if self.reads.ahead and after is not None:
            planned, place = self.plan(after), 1 - self.place
            self.planned, self.coming = planned, self.reads.later(lambda: self.read(planned, place))
        return self.here[item]


class Places:
    """Two pieces of memory for portions of rows, as large as the largest so far."""

    def __init__(self, width: int, dtype: Any) -> None:
        self.memory = [np.empty((0, width), dtype) for _ in range(2)]

    def rows(self, place: int, n: int) -> Array:
        """Return room for n rows."""
        if len(self.memory[place]) < n:
            self.memory[place] = np.empty((n, *self.memory[place].shape[1:]), self.memory[place].dtype)
        return self.memory[place][:n]
