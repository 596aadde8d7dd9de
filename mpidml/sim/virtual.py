"""Interpret roles on virtual clocks: events in the order of their time, nothing waits for real.

t 0.00   worker 0  compute 0 ------> 0.30     events are taken in the order (time, number), so a run is a function of its
t 0.00   worker 1  compute 0 -> 0.10          arguments alone
t 0.10   worker 1  push 0, clock, pull 1
"""

from __future__ import annotations

import gc
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mpidml.core.errors import WaitTimeout
from mpidml.core.role import NOTHING, After, Compute, Effects, Lease, Message, Record, Role, Send, Stop

Recorder = Callable[[float, int, str, tuple[float, ...]], None]


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
    Cost: O(1) a message of constant delay, whose times never decrease, so a queue orders them; O(log n) for the rest, on a heap.
    """
    heap: list[tuple[float, int, int, int, Any]] = []
    queue: deque[tuple[float, int, int, int, Any]] = deque()
    records: list[tuple[float, int, str, tuple[float, ...]]] = []
    busy_seconds = [0.0] * len(roles)
    last_arrival: dict[tuple[int, int], float] = {}
    running = [True] * len(roles)
    heappush, heappop, enqueue = heapq.heappush, heapq.heappop, queue.append
    note: Recorder = record if record is not None else lambda now, me, name, value: records.append((now, me, name, value))
    number = n_messages = nbytes = 0
    constant = float(latency_seconds) if arrival is None and not callable(latency_seconds) else None

    def perform(now: float, me: int, effects: Effects) -> None:
        nonlocal number, n_messages, nbytes
        for effect in effects:
            number += 1
            if type(effect) is Send:
                n_messages += 1
                target, message = effect
                data = message[8]
                if data is not None:
                    nbytes += data.array.nbytes
                    data.lend()
                if message[7] is not None:
                    nbytes += message[7].nbytes
                if constant is not None:
                    enqueue((now + constant, number, target, me, message))
                    continue
                at = arrival(now, me, target, message) if arrival is not None else now + latency_seconds(me, target, number)  # type: ignore[operator]
                if in_order:
                    pair = (me, target)
                    at = last_arrival[pair] = max(at, last_arrival.get(pair, 0.0))
                heappush(heap, (at, number, target, me, message))
            elif type(effect) is Record:
                note(now, me, effect[0], effect[1])
            elif type(effect) is Compute:
                function, arguments, step = effect
                seconds = compute_seconds(me, step, now)
                busy_seconds[me] += seconds
                if reports:
                    found: list[tuple[int, int]] = []
                    result = function(*arguments, lambda lo, hi, found=found: found.append((lo, hi)))
                    for i, piece in enumerate(ranges := [r for r in found if r[0] < r[1]] or parts(me, step)):
                        number += 1
                        heappush(heap, (now + seconds * (i + 1) / (len(ranges) + 1), number, me, -2, piece))
                    number += 1
                else:
                    result = function(*arguments, None)
                heappush(heap, (now + seconds, number, me, -1, result))
            elif type(effect) is After:
                heappush(heap, (now + effect[0], number, me, -3, None))
            elif type(effect) is Stop:
                running[me] = False

    now = 0.0
    effects: Effects
    collects = gc.isenabled()
    gc.disable()  # messages and effects hold no cycles; looking for some takes a third of the time
    try:
        for me, role in enumerate(roles):
            perform(now, me, role.start(now))
        while heap or queue:
            # Numbers differ, so comparing two entries never looks beyond them.
            now, _, me, source, what = queue.popleft() if queue and (not heap or queue[0] < heap[0]) else heappop(heap)
            role = roles[me]
            if source >= 0:
                effects = role.handle(now, source, what if what[8] is None else _landed(role, source, what))
            elif source == -1:
                effects = role.done(now, what)
            elif source == -2:
                effects = role.part(now, *what)
            else:
                effects = role.timer(now) if running[me] else NOTHING
            if effects:
                perform(now, me, effects)
    finally:
        if collects:
            gc.enable()
    if left := [me for me, runs in enumerate(running) if runs]:
        waits = [w.text for me in left for w in roles[me].waiting(now)]
        raise WaitTimeout(f"virtual clocks: {len(left)} role(s) wait for ever at {now:.3f} s: " + "; ".join(waits[:5]))
    return Result(now, n_messages, nbytes, records, busy_seconds)


def _landed(role: Role, source: int, message: Message) -> Message:
    """Put the payload of an answer where its receiver wants it, as a network does."""
    assert message.data is not None
    if (landing := role.landing(source, message)) is None:
        return message
    landing[:] = message.data.array.view(landing.dtype)
    message.data.release()
    return message._replace(data=Lease(landing))
