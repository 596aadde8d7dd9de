"""Time a schedule again and again with other seconds: what waits for what is found once, so that a time takes a small part of a replay.

    schedule -> order in which computes can be done, each with what it waits for and what waits for it -> for each candidate a pass over numbers

It is for programs that `core.lowering` makes of schedules with a flush, and equal to their `core.replay` to the last bit.
"""

from __future__ import annotations

from collections import deque
from functools import cached_property

from mpidml.core.action import Action
from mpidml.core.lowering import lower
from mpidml.core.replay import Seconds, replay
from mpidml.schedules.base import Schedule

OPS = ("F", "B", "I", "W")


class Course:
    """Computes of `n_items` microbatches on `pipe` ranks."""

    def __init__(self, schedule: Schedule, pipe: int, n_items: int) -> None:
        self.schedule, self.pipe, self.n_items, self.n_stages = schedule, pipe, n_items, pipe * schedule.n_chunks
        self.due: list[list[int]] = [[] for _ in range(pipe)]

    @cached_property
    def splits(self) -> bool:
        """Whether backwards come in halves."""
        return any(action.op == "W" for rank in range(self.pipe) for action in self.schedule.order(rank, self.pipe, 1))

    @cached_property
    def kept(self) -> list[int]:
        """Return of each stage how many microbatches it keeps at once: their forward is done, and their last backward is not."""
        now, most = [0] * self.n_stages, [0] * self.n_stages
        for rank in range(self.pipe):
            for s, op, _, _ in self.schedule.order(rank, self.pipe, self.n_items):
                if op == "F":
                    now[s] += 1
                    if now[s] > most[s]:
                        most[s] = now[s]
                elif op in ("B", "W"):
                    now[s] -= 1
        return most

    @cached_property
    def steps(self) -> list[tuple[int, int, int, int, int]]:
        """Return (rank, which seconds, where what it waits for arrives, where what it sends arrives, which way), -1 where there is none.

        Nothing for a schedule in which all ranks meet.
        """
        orders = [list(self.schedule.order(rank, self.pipe, self.n_items)) for rank in range(self.pipe)]
        return [] if any(action.op == "X" for order in orders for action in order) else self._steps(orders)

    def _steps(self, orders: list[list[Action]]) -> list[tuple[int, int, int, int, int]]:
        n, stages, no_time, at = self.n_items, self.n_stages, 8 * self.n_stages, [0] * self.pipe
        has_come, sleeping, ready = bytearray(2 * stages * n), dict[int, int](), deque(range(self.pipe))
        left, steps = [n] * stages, list[tuple[int, int, int, int, int]]()
        while ready:
            rank = ready.popleft()
            order = orders[rank]
            while at[rank] < len(order):
                s, op, item, _ = order[at[rank]]
                back = op != "F"
                waits = s * n + item + back * stages * n if op != "W" and (s < stages - 1 if back else s > 0) else -1
                if waits >= 0 and not has_come[waits]:
                    sleeping[waits] = rank
                    break
                ahead = s - 1 if back else s + 1
                gives = ahead * n + item + back * stages * n if op != "W" and 0 <= ahead < stages else -1
                steps.append((rank, (s * 4 + OPS.index(op)) * 2 + (item > 0), waits, gives, 2 * s + back))
                if gives >= 0:
                    has_come[gives] = 1
                    if gives in sleeping:
                        ready.append(sleeping.pop(gives))
                if op in ("B", "W"):
                    left[s] -= 1
                    if not left[s]:  # the sum can begin
                        self.due[rank].append(s)
                        steps.append((rank, no_time, -1, 2 * stages * n + s, 2 * stages))
                at[rank] += 1
        return steps

    def ends(self, seconds: Seconds) -> float:
        """Return when all is done, as a replay with these seconds says; those of an action may depend on whether it is of the first microbatch."""
        if not self.steps:
            return replay(lower(self.schedule, self.pipe, self.n_items, True), seconds).seconds
        table = [seconds.of(Action(s, op, item)) for s in range(self.n_stages) for op in OPS for item in (0, 1)] + [0.0]
        ends = {(0, False), (self.n_stages - 1, True)}
        ways = [0.0 if (s, ahead) in ends else seconds.travel(s, ahead) for s in range(self.n_stages) for ahead in (True, False)] + [0.0]
        now, arrives, n = [0.0] * self.pipe, [0.0] * (self.n_stages * (2 * self.n_items + 1)), 2 * self.n_stages * self.n_items
        for rank, which, waits, gives, way in self.steps:
            at = now[rank]
            if waits >= 0 and arrives[waits] > at:
                at = arrives[waits]
            at += table[which]
            now[rank] = at
            if gives >= 0:
                arrives[gives] = at + ways[way]
        last = 0.0
        for rank, due in enumerate(self.due):
            at = now[rank]
            for s in due:
                at = max(at, arrives[n + s] + seconds.of(Action(s, "G"))) + seconds.of(Action(s, "U"))
            last = max(last, at)
        return last
