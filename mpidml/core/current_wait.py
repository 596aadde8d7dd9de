"""Note what the main thread of this process waits for, so that a thread beside it can tell for what, and since when.

    compute | begin .... a wait .... end | compute | begin ...      two stores each; whoever watches looks a few times a second
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple


class Call(NamedTuple):
    """The `number`-th call of a collective of a communicator: its `key` there is alike on all its `ranks` (those of the job) and nowhere else."""

    key: int
    number: int
    ranks: Sequence[int]


class Wait(NamedTuple):
    """`what`, or what it returns, says who waits for whom, for what, `since` in seconds of the monotonic clock.

    `call`: a blocking call, which only a watcher can end; None for a wait that ends by itself at its limit. `limited`: whether it ever has to end.
    `late()`: of a wait without a call the ranks of the job that it waits for now, as far as they are known.
    """

    what: str | Callable[[], str]
    since: float
    call: Call | None = None
    limited: bool = True
    late: Callable[[], Sequence[int]] = tuple


class CurrentWait:
    """What one thread waits for: `now`, None while it computes. Waits lie within each other: `end` is given what `begin` returned."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: Wait | None = None

    def begin(self, wait: Wait | None) -> Wait | None:
        """Note a wait, and return the one around it."""
        around, self.now = self.now, wait
        return around

    def end(self, around: Wait | None = None) -> None:
        """Note that it is over."""
        self.now = around

    @contextmanager
    def on(self, wait: Wait) -> Iterator[Any]:
        """Note a wait around a block."""
        around = self.begin(wait)
        try:
            yield
        finally:
            self.now = around


MAIN = CurrentWait()
"""That of the main thread."""
