"""Interpret roles on virtual clocks: events in the order of their time, nothing waits for real.

t 0.00   worker 0  compute 0 ------> 0.30     events are taken in the order of time and, at one time, of a rule, so a run is a function of its
t 0.00   worker 1  compute 0 -> 0.10          arguments alone
t 0.10   worker 1  push 0, clock, pull 1
"""

from __future__ import annotations

import gc
import heapq
import math
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from mpidml.core.errors import WaitTimeout
from mpidml.core.role import NOTHING, After, Compute, Lease, Message, Passive, Record, Role, Send, Stop

Recorder = Callable[[float, int, str, tuple[float, ...]], None]
Event = tuple[float, int, int, int, Any]
"""When, its number, for whom, from whom or of what kind, what."""

DONE, PART, TIMER, STARTS = -1, -2, -3, -4
BEFORE = -1 << 60
"""Added to the numbers of messages, which come before all else of the same time; small numbers are the faster ones."""


class Result(NamedTuple):
    """What a virtual run was: its length, its messages and payload bytes, and every (seconds, role, name, value) recorded."""

    seconds: float
    n_messages: int
    nbytes: int
    records: list[tuple[float, int, str, tuple[float, ...]]]
    compute_seconds: list[float]


def run(
    roles: Sequence[Role],
    compute_seconds: Callable[[int, int, float], float],
    latency_seconds: float | Callable[[int, int, int], float] = 50e-6,
    in_order: bool = True,
    parts: Callable[[int, int], Sequence[tuple[int, int]]] = lambda role, step: (),
    record: Recorder | None = None,
    arrival: Callable[[float, int, int, Message], float] | None = None,
    reports: bool = True,
) -> Result:
    """Run `roles` (numbered by position) to their end.

    compute_seconds(role, step, now): length of a compute that begins now; latency_seconds: delay of every message, or latency_seconds(source,
    target, number) that of the n-th, or, in place of both, arrival(now, source, target, message) its time of arrival; in_order: a pair's messages
    keep their order (as on MPI), else they may overtake each other. parts(role, step): ranges reported as final, spread evenly over the compute;
    `reports` false: computes report none. `record` takes what roles note as (seconds, role, name, value); without it the result lists all.
    Raises WaitTimeout when nothing can happen any more although roles have not stopped: it lists who waits for whom.
    Cost: O(1) a message of constant delay, whose times never decrease, so a queue orders them; O(log n) for the rest, on a heap of what comes next.
    At one time messages come first, in the order in which they were sent, then the ends of what roles have begun, in that order.
    """
    heap: list[Event] = []
    queue: deque[tuple[float, int, int, Any]] = deque()
    records: list[tuple[float, int, str, tuple[float, ...]]] = []
    busy_seconds = array("d", [0.0]) * len(roles)
    last_arrival: dict[tuple[int, int], float] = {}
    running = [True] * len(roles)
    heappush, heappop, enqueue, popleft = heapq.heappush, heapq.heappop, queue.append, queue.popleft
    note: Recorder = record if record is not None else lambda now, me, name, value: records.append((now, me, name, value))
    n_messages = nbytes = 0
    constant = float(latency_seconds) if arrival is None and not callable(latency_seconds) else None

    now = 0.0
    collects = gc.isenabled()
    gc.disable()  # messages and effects hold no cycles; looking for some takes a third of the time
    queue.extend((now, me, STARTS, None) for me in range(len(roles)))
    number = 0
    handle = [role.handle for role in roles]
    places = [getattr(type(role), "landing", None) is not Passive.landing for role in roles]
    far: list[Event] = []  # what is after the horizon, in any order: a small heap is taken from much faster than one of all computes
    horizon = math.inf if reports else 0.0
    due = math.inf  # when the first on the heap is
    try:
        while True:
            if queue and queue[0][0] <= due:
                now, me, source, what = popleft()
            elif heap:
                now, _, me, source, what = heappop(heap)  # numbers differ, so comparing two entries never looks beyond them
                if not heap and far:
                    horizon = _come_near(far, heap)
                due = heap[0][0] if heap else math.inf
            else:
                break
            if source >= 0:
                n_messages += 1
                if what[8] is not None and places[me]:
                    what = _landed(roles[me], source, what)
                effects = handle[me](now, source, what)
            elif source == DONE:
                effects = roles[me].done(now, what)
            elif source == PART:
                effects = roles[me].part(now, *what)
            elif source == STARTS:
                effects = roles[me].start(now)
            else:
                effects = roles[me].timer(now) if running[me] else NOTHING
            for effect in effects:
                event: Event
                if type(effect) is Send:
                    target, message = effect[0], effect[1]
                    data = message[8]
                    if data is not None:
                        nbytes += data.array.nbytes
                        if data.buffer is not None:
                            data.lend()
                    if message[7] is not None:
                        nbytes += message[7].nbytes
                    if constant is not None:
                        enqueue((now + constant, target, me, message))
                        continue
                    number += 1
                    at = arrival(now, me, target, message) if arrival is not None else now + latency_seconds(me, target, number)  # type: ignore[operator]
                    if in_order:
                        pair = (me, target)
                        at = last_arrival[pair] = max(at, last_arrival.get(pair, 0.0))
                    event = (at, BEFORE + number, target, me, message)
                elif type(effect) is Compute:
                    function, turn, step = effect[0], effect[1], effect[2]
                    seconds = compute_seconds(me, step, now)
                    busy_seconds[me] += seconds
                    at = now + seconds
                    if reports:
                        found: list[tuple[int, int]] = []
                        result = function(turn, lambda lo, hi, found=found: found.append((lo, hi)))
                        for i, piece in enumerate(ranges := [r for r in found if r[0] < r[1]] or parts(me, step)):
                            number += 1
                            heappush(heap, (now + seconds * (i + 1) / (len(ranges) + 1), number, me, PART, piece))
                        due = heap[0][0] if heap else due
                    else:
                        result = function(turn, None)
                    number += 1
                    event = (at, number, me, DONE, result)
                elif type(effect) is Record:
                    note(now, me, effect[0], effect[1])
                    continue
                elif type(effect) is After:
                    number += 1
                    at = now + effect[0]
                    event = (at, number, me, TIMER, None)
                else:
                    assert type(effect) is Stop
                    running[me] = False
                    continue
                if at > horizon:
                    if heap:
                        far.append(event)
                        continue
                    horizon = at
                heappush(heap, event)
                if at < due:
                    due = at
    finally:
        if collects:
            gc.enable()
    if left := [me for me, runs in enumerate(running) if runs]:
        waits = [w.text for me in left for w in roles[me].waiting(now)]
        raise WaitTimeout(f"virtual clocks: {len(left)} role(s) wait for ever at {now:.3f} s: " + "; ".join(waits[:5]))
    return Result(now, n_messages, nbytes, records, list(busy_seconds))


def _come_near(far: list[Event], heap: list[Event]) -> float:
    """Move the first third of `far` to the empty `heap`, and all that is at the same time; return that time. Cost: O(1) an event, `far` is mostly sorted."""
    far.sort()
    last = far[min(max(len(far) // 3, 64), len(far) - 1)][0]
    n = bisect_right(far, last, key=itemgetter(0))
    heap.extend(far[:n])  # sorted is a heap
    del far[:n]
    return last


def _landed(role: Role, source: int, message: Message) -> Message:
    """Put the payload of an answer where its receiver wants it, as a network does."""
    assert message.data is not None
    if (landing := role.landing(source, message)) is None:
        return message
    landing[:] = message.data.array.view(landing.dtype)
    message.data.release()
    return message._replace(data=Lease(landing))
