"""Interpret roles on virtual clocks: one heap of events, nothing waits for real.

t 0.00   worker 0  compute 0 ------> 0.30     events leave the heap in the order (time, number), so a run is a function of its
t 0.00   worker 1  compute 0 -> 0.10          arguments alone
t 0.10   worker 1  push 0, clock, pull 1
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mpidml.core.errors import WaitTimeout
from mpidml.core.role import Compute, Effects, Lease, Message, Record, Role, Send, Stop


class Result(NamedTuple):
    """What a virtual run was: its length, its messages and payload bytes, and every (seconds, role, name, value) recorded."""

    seconds: float
    n_messages: int
    nbytes: int
    records: list[tuple[float, int, str, tuple[float, ...]]]
    compute_seconds: list[float]


def run(
    roles: Sequence[Role],
    compute_seconds: Callable[[int, int], float],
    latency_seconds: float | Callable[[int, int, int], float] = 50e-6,
    in_order: bool = True,
    parts: Callable[[int, int], Sequence[tuple[int, int]]] = lambda role, clock: (),
) -> Result:
    """Run `roles` (numbered by position) to their end.

    compute_seconds(role, clock): length of a compute; latency_seconds: delay of every message, or latency_seconds(source, target, number) that of
    the n-th; in_order: a pair's messages keep their order (as on MPI), else they may overtake each other.
    parts(role, clock): ranges reported as final, spread evenly over the compute.
    Raises WaitTimeout when nothing can happen any more although roles have not stopped: it lists who waits for whom.
    Cost: O(1) a message of constant delay, whose times never decrease, so a queue orders them; O(log n) for the rest, on a heap.
    """
    heap: list[tuple[float, int, int, int, Any]] = []
    queue: deque[tuple[float, int, int, int, Any]] = deque()
    records: list[tuple[float, int, str, tuple[float, ...]]] = []
    busy_seconds = [0.0] * len(roles)
    last_arrival: dict[tuple[int, int], float] = {}
    running = dict.fromkeys(range(len(roles)), True)
    heappush, heappop, note, enqueue = heapq.heappush, heapq.heappop, records.append, queue.append
    number = n_messages = nbytes = 0
    constant = None if callable(latency_seconds) else float(latency_seconds)

    def perform(now: float, me: int, effects: Effects) -> None:
        nonlocal number, n_messages, nbytes
        for effect in effects:
            number += 1
            if type(effect) is Send:
                n_messages += 1
                target, message = effect
                if message.data is not None:
                    nbytes += message.data.array.nbytes
                    message.data.lend()
                if message.rows is not None:
                    nbytes += message.rows.nbytes
                if constant is not None:
                    enqueue((now + constant, number, target, me, message))
                    continue
                at = now + latency_seconds(me, target, number)  # type: ignore[operator]
                if in_order:
                    pair = (me, target)
                    at = last_arrival[pair] = max(at, last_arrival.get(pair, 0.0))
                heappush(heap, (at, number, target, me, message))
            elif type(effect) is Record:
                note((now, me, effect.name, effect.value))
            elif type(effect) is Compute:
                function, arguments, clock = effect
                seconds = compute_seconds(me, clock)
                busy_seconds[me] += seconds
                found: list[tuple[int, int]] = []
                result = function(*arguments, lambda lo, hi, found=found: found.append((lo, hi)))
                for i, piece in enumerate(ranges := [r for r in found if r[0] < r[1]] or parts(me, clock)):
                    number += 1
                    heappush(heap, (now + seconds * (i + 1) / (len(ranges) + 1), number, me, -2, piece))
                number += 1
                heappush(heap, (now + seconds, number, me, -1, result))
            elif type(effect) is Stop:
                running.pop(me)

    now = 0.0
    for me, role in enumerate(roles):
        perform(now, me, role.start(now))
    while heap or queue:
        # Numbers differ, so comparing two entries never looks beyond them.
        now, _, me, source, what = queue.popleft() if queue and (not heap or queue[0] < heap[0]) else heappop(heap)
        role = roles[me]
        if source >= 0:
            effects = role.handle(now, source, what if what.data is None else _landed(role, source, what))
        elif source == -1:
            effects = role.done(now, what)
        else:
            effects = role.part(now, *what)
        if effects:
            perform(now, me, effects)
    if running:
        waits = [w.text for me in running for w in roles[me].waiting(now)]
        raise WaitTimeout(f"virtual clocks: {len(running)} role(s) wait for ever at {now:.3f} s: " + "; ".join(waits[:5]))
    return Result(now, n_messages, nbytes, records, busy_seconds)


def _landed(role: Role, source: int, message: Message) -> Message:
    """Put the payload of an answer where its receiver wants it, as a network does."""
    assert message.data is not None
    if (landing := role.landing(source, message)) is None:
        return message
    landing[:] = message.data.array.view(landing.dtype)
    message.data.release()
    return message._replace(data=Lease(landing))
