"""Interpret roles on virtual clocks: one heap of events, nothing waits for real.

t 0.00   worker 0  compute 0 ------> 0.30     events leave the heap in the order (time, number), so a run is a function of its
t 0.00   worker 1  compute 0 -> 0.10          arguments alone
t 0.10   worker 1  push 0, clock, pull 1
"""

from __future__ import annotations

import heapq
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
    latency_seconds: Callable[[int, int, int], float] = lambda source, target, number: 50e-6,
    in_order: bool = True,
    parts: Callable[[int, int], Sequence[tuple[int, int]]] = lambda role, clock: (),
) -> Result:
    """Run `roles` (numbered by position) to their end.

    compute_seconds(role, clock): length of a compute; latency_seconds(source, target, number): delay of the n-th message;
    in_order: a pair's messages keep their order (as on MPI), else they may overtake each other.
    parts(role, clock): ranges reported as final, spread evenly over the compute.
    Raises WaitTimeout when nothing can happen any more although roles have not stopped: it lists who waits for whom.
    """
    heap: list[tuple[float, int, int, int, Any]] = []
    records: list[tuple[float, int, str, tuple[float, ...]]] = []
    busy_seconds = [0.0] * len(roles)
    last_arrival: dict[tuple[int, int], float] = {}
    running = dict.fromkeys(range(len(roles)), True)
    number = n_messages = nbytes = 0

    def perform(now: float, me: int, effects: Effects) -> None:
        nonlocal number, n_messages, nbytes
        for effect in effects:
            number += 1
            if isinstance(effect, Send):
                n_messages += 1
                message = effect.message
                at = now + latency_seconds(me, effect.target, number)
                if in_order:
                    pair = (me, effect.target)
                    at = last_arrival[pair] = max(at, last_arrival.get(pair, 0.0))
                if message.data is not None:
                    nbytes += message.data.array.nbytes
                    message.data.lend()
                if message.rows is not None:
                    nbytes += message.rows.nbytes
                heapq.heappush(heap, (at, number, effect.target, me, message))
            elif isinstance(effect, Compute):
                seconds = compute_seconds(me, effect.clock)
                busy_seconds[me] += seconds
                found: list[tuple[int, int]] = []
                result = effect.function(*effect.arguments, lambda lo, hi, found=found: found.append((lo, hi)))
                ranges = [r for r in found if r[0] < r[1]] or list(parts(me, effect.clock))
                for i, piece in enumerate(ranges):
                    number += 1
                    heapq.heappush(heap, (now + seconds * (i + 1) / (len(ranges) + 1), number, me, -2, piece))
                number += 1
                heapq.heappush(heap, (now + seconds, number, me, -1, result))
            elif isinstance(effect, Record):
                records.append((now, me, effect.name, effect.value))
            elif isinstance(effect, Stop):
                running.pop(me)

    now = 0.0
    for me, role in enumerate(roles):
        perform(now, me, role.start(now))
    while heap:
        now, _, me, source, what = heapq.heappop(heap)
        role = roles[me]
        if source == -2:
            perform(now, me, role.part(now, *what))
        elif source == -1:
            perform(now, me, role.done(now, what))
        else:
            perform(now, me, role.handle(now, source, _landed(role, source, what)))
    if running:
        waits = [w.text for me in running for w in roles[me].waiting(now)]
        raise WaitTimeout(f"virtual clocks: {len(running)} role(s) wait for ever at {now:.3f} s: " + "; ".join(waits[:5]))
    return Result(now, n_messages, nbytes, records, busy_seconds)


def _landed(role: Role, source: int, message: Message) -> Message:
    """Put the payload of an answer where its receiver wants it, as a network does."""
    if message.data is None or (landing := role.landing(source, message)) is None:
        return message
    landing[:] = message.data.array.view(landing.dtype)
    message.data.release()
    return message._replace(data=Lease(landing))
