"""Decide when a wait has become a hang: who will never come is waited for a short time, who does nothing for the limit, who works for ever.

    a rank that is stopped, gone or has left              silent_seconds after that was first seen, by whoever waits so long
    a rank that is silent                                 the limit, likewise: it may hold its interpreter, or the network be away
    a blocking call, nobody that is missing works         the limit, counted from the last moment at which one did
    a blocking call, a rank that is missing works         never: it is slow
    a wait that has a limit of its own                    at that limit, where it stands
    the end of a rank's program                           `grace_seconds` after the limit: whoever waits for that rank says it better

What moves within a call is not seen: where all have come, a transfer that takes longer than the limit is ended like a hang.

No clock, no process, no message: looks come in, a verdict goes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from mpidml.core.current_wait import Wait
from mpidml.runtime.neighbours import LEFT, LOST, SILENT, WORKS, Look

SILENT_SECONDS = 15.0
"""How long a rank may be lost, which ends no job that comes to itself again, as after a stop of all its processes."""


class Verdict(NamedTuple):
    """What is told of a wait that is ended: one sentence, and the ranks that it is about."""

    text: str
    ranks: tuple[int, ...]


class Judge:
    """Hear once in a while what one rank waits for, and what the others do."""

    def __init__(self, limit_seconds: float, silent_seconds: float = SILENT_SECONDS) -> None:
        self.limit_seconds, self.silent_seconds = limit_seconds, silent_seconds
        self.grace_seconds = 0.0
        self.since = self.idle_since = self.heard_at = 0.0
        self.lost_since: dict[int, float] = {}

    def hear(self, now: float, wait: Wait | None, looks: Sequence[Look], every_seconds: float = 1.0) -> Verdict | None:
        """Return a verdict, or None while there is hope. Who hears less often than `every_seconds` says was stopped itself: that time counts for nobody."""
        if now - self.heard_at > 5 * every_seconds:
            self.lost_since.clear()
            self.idle_since += now - self.heard_at if self.heard_at else 0.0
        self.heard_at = now
        if wait is None:
            self.lost_since.clear()
            return None
        if wait.since != self.since:
            self.since = self.idle_since = wait.since
        missing = self._missing(wait, looks)
        lost = [look for look in looks if look.state in LOST and _concerns(wait, look)]
        self.lost_since = {look.rank: self.lost_since.get(look.rank, now) for look in lost}
        if any(look.state == WORKS for look in missing):
            self.idle_since = now
        over = wait.call is not None and wait.limited and now - self.idle_since > self.limit_seconds + self.grace_seconds
        if ripe := [look for look in lost if over or now - max(wait.since, self.lost_since[look.rank]) >= self._patience(look)]:
            first = min(ripe, key=lambda look: self.lost_since[look.rank])
            others = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            return Verdict(f"rank {first.rank}{others} has not answered for {first.silent_seconds:.1f} s: {first.text}", tuple(look.rank for look in lost))
        if not over:
            return None
        who = f"waits for rank {', '.join(str(look.rank) for look in missing[:8])}{' ...' * (len(missing) > 8)}"
        if not missing:
            known = "although every rank has come to its call of this number (are they the same?)" if looks else "and nothing is known of other ranks"
            who = f"has not ended, {known},"
        return Verdict(f"{who} for {now - wait.since:.1f} s; the limit is {self.limit_seconds:g} s (--wait-limit)", tuple(look.rank for look in missing))

    def _patience(self, look: Look) -> float:
        """Return how long a rank may be lost in this way."""
        return self.limit_seconds if look.state == SILENT else min(self.silent_seconds, self.limit_seconds)

    def _missing(self, wait: Wait, looks: Sequence[Look]) -> list[Look]:
        """Return those who have not come, as far as that is known."""
        return [look for look in looks if not look.arrived and (wait.call is None or look.rank in wait.call.ranks)]


def _concerns(wait: Wait, look: Look) -> bool:
    """Whether a lost rank keeps a wait from its end. One that has left after it came does not; a wait without a call says whom it waits for, where it knows."""
    if look.state == LEFT and wait.call is None:
        with suppress(Exception):  # what it looks at changes under it, since another thread asks
            return look.rank in wait.late()
        return False
    if look.state == LEFT:
        return wait.call is not None and wait.limited and look.rank in wait.call.ranks and not look.arrived
    return wait.call is None or look.rank in wait.call.ranks
