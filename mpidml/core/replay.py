"""Replay a program on virtual clocks: when each action begins and ends, if each rank does its own in order and as early as it can.

The same replay checks a program before a run (it stops where nothing can go on, or where an action lacks what it needs), draws it, and times it.
Cost: O(actions).
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mpidml.core.action import BACKWARD, COMPUTE, MOVES, Action
from mpidml.core.program import Program
from mpidml.core.stage_record import StageRecord


class Seconds(NamedTuple):
    """What actions take. `of(action)`: a compute, an update (U), or the sum over replicas (G), which goes on beside what follows until its U;
    `travel(stage, forward)`: how long what `stage` sends is under way; `overhead`: of every action besides, but of a wait for all."""

    of: Callable[[Action], float]
    travel: Callable[[int, bool], float] = lambda stage, forward: 0.0
    overhead: float = 0.0


def units(action: Action) -> float:
    """Return the usual unit costs: forward 1, backward 2, each half of it 1, all else nothing."""
    return {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}.get(action.op, 0.0)


class Event(NamedTuple):
    """`rank` was busy with `action`, or waited in it, from `start` to `end`."""

    rank: int
    action: Action
    start: float
    end: float


class Replay(NamedTuple):
    """What a program was: its length, all events in the order of each rank, of each stage the most microbatches whose activations it kept at once,
    and the most versions of its weights; `sent`: the most microbatches that one of its ranks had gone forward with towards one of the next stage, which was not
    done with them: in this order, and one that ends with room for so many shows that each does."""

    seconds: float
    events: list[Event]
    activations: list[int]
    versions: list[int]
    sent: list[int]

    def busy(self, rank: int) -> float:
        """Return the seconds in which a rank computed."""
        return sum(e.end - e.start for e in self.events if e.rank == rank and e.action.op in COMPUTE)

    def bubble(self, n_ranks: int) -> float:
        """Return the share of all ranks' time in which they did not compute."""
        return 1 - sum(e.end - e.start for e in self.events if e.action.op in COMPUTE) / (n_ranks * self.seconds) if self.seconds else 0.0


class Fault(Exception):
    """The action at `position` of `rank` cannot be done; `str` says why. `at`: how far each rank came."""

    def __init__(self, rank: int, position: int, why: str, at: Sequence[int] = ()) -> None:
        super().__init__(why)
        self.rank, self.position, self.at = rank, position, tuple(at)


def replay(program: Program, seconds: Seconds | None = None) -> Replay:
    """Replay `program`; Fault names the first action that lacks what it needs, or that waits for ever."""
    return _Machine(program, seconds or Seconds(units)).run()


class _Machine:
    def __init__(self, program: Program, seconds: Seconds) -> None:
        self.program, self.seconds = program, seconds
        self.stages = {(s, rank): StageRecord() for s in range(program.n_stages) for rank in program.ranks_of(s)}
        self.at = [0] * program.n_ranks
        self.now = [0.0] * program.n_ranks
        self.arrives: dict[Action, float] = {}
        self.events: list[Event] = []
        self.under_way = defaultdict[tuple[int, int, int], int](int)  # by stage, its rank and that of the next stage
        self.most_sent = [0] * program.n_stages
        self.at_barrier: dict[int, float] = {}
        self.at_sum: dict[int, dict[int, float]] = defaultdict(dict)  # of a stage, which of its ranks have come, and when
        self.has_sums = any(action.op == "G" for actions in program.lists for action in actions)
        for rank, actions in enumerate(program.lists):
            for s, op, item, version in actions:
                if op == "V" and (s, rank) in self.stages:
                    self.stages[s, rank].reads[item] = version

    def run(self) -> Replay:
        lists = self.program.lists
        ready, sleeping, unsummed = deque(range(len(lists))), dict[Action, int](), defaultdict[int, list[int]](list)
        while ready:
            rank = ready.popleft()
            while self.at[rank] < len(lists[rank]):
                action = lists[rank][self.at[rank]]
                if action.op == "X":
                    self.at_barrier[rank] = self.now[rank]
                    if len(self.at_barrier) < len(lists):
                        break
                    self._open()
                    ready.extend(r for r in range(len(lists)) if r != rank)
                    continue
                if why := self._misplaced(rank, action):
                    self._refuse(rank, why)
                if action.op in ("RF", "RB") and action not in self.arrives:
                    sleeping[action] = rank
                    break
                if action.op == "U" and self.stages[action.stage, rank].summed_at == math.inf:
                    unsummed[action.stage].append(rank)
                    break
                start, end = self._do(rank, action)
                self.events.append(Event(rank, action, start, end))
                self.now[rank] = end
                self.at[rank] += 1
                if (arrival := _arrival(action)) is not None and arrival in sleeping:
                    ready.append(sleeping.pop(arrival))
                if action.op == "G" and not self.at_sum[action.stage]:
                    ready.extend(unsummed.pop(action.stage, ()))
        if any(position < len(lists[rank]) for rank, position in enumerate(self.at)):
            self._stuck()
        self._complete()
        every = [[self.stages[s, rank] for rank in self.program.ranks_of(s)] for s in range(self.program.n_stages)]
        kept, versions = [max(stage.most_kept for stage in of) for of in every], [max(stage.most_versions for stage in of) for of in every]
        return Replay(max(self.now, default=0.0), self.events, kept, versions, self.most_sent)

    def _open(self) -> None:
        at = max(self.at_barrier.values())
        for rank, came in self.at_barrier.items():
            self.events.append(Event(rank, self.program.lists[rank][self.at[rank]], came, at))
            self.now[rank] = at
            self.at[rank] += 1
        self.at_barrier.clear()

    def _stuck(self) -> None:
        """Raise the Fault of ranks that wait for ever: of the one whose wait nobody ends, or of a circle of them."""
        lists = self.program.lists
        rank = next(r for r, position in enumerate(self.at) if position < len(lists[r]))
        came_by: dict[int, str] = {}
        while rank not in came_by:
            position = self.at[rank]
            what, other, is_listed = self._awaited(lists[rank][position])
            if not is_listed:
                raise Fault(rank, position, f"waits for ever for {what}, which rank {other} does not come to", self.at)
            came_by[rank] = f"rank {rank} at {lists[rank][position]} waits for {what} of rank {other}"
            rank = other
        circle = list(came_by)[list(came_by).index(rank) :]
        raise Fault(rank, self.at[rank], f"waits for ever, in a circle: {', '.join(came_by[r] for r in circle)}", self.at)

    def _awaited(self, action: Action) -> tuple[str, int, bool]:
        """Return what a waiting action waits for, the rank that has to do it, and whether that rank has it before it."""
        if action.op == "X":
            other = next(r for r in range(self.program.n_ranks) if r not in self.at_barrier)
            rest = self.program.lists[other][self.at[other] :]
            return str(action), other, any(each.op == "X" for each in rest)
        if action.op == "U":
            sums, other = Action(action.stage, "G"), next(r for r in self.program.ranks_of(action.stage) if r not in self.at_sum[action.stage])
            return str(sums), other, sums in self.program.lists[other][self.at[other] :]
        stage = action.stage + (1 if action.op == "RB" else -1)
        sends, other = Action(stage, "SB" if action.op == "RB" else "SF", action.item), self.program.rank_of(stage, action.item)
        return str(sends), other, sends in self.program.lists[other][self.at[other] :]

    def _refuse(self, rank: int, why: str) -> None:
        raise Fault(rank, self.at[rank], why, self.at)

    def _misplaced(self, rank: int, action: Action) -> str:
        """Return why an action can be nowhere in this list; "" where it can."""
        s, op, item, _ = action
        if not 0 <= s < self.program.n_stages:
            return f"there is no stage {s}"
        if rank not in (ranks := self.program.ranks_of(s)):
            return f"stage {s} lives on rank {self.program.rank_of(s)}, not here"
        if op in COMPUTE or op in MOVES or op == "V":
            if not 0 <= item < self.program.n_items:
                return f"there is no microbatch {item}"
            if len(ranks) > 1 and (turn := self.program.rank_of(s, item)) != rank:
                return f"microbatch {item} is the turn of rank {turn}, not of this one"
            if item in self.stages[s, rank].done[op]:
                return "is done a second time"
        if (op in ("RF", "SB") and not s) or (op in ("SF", "RB") and self.program.is_last(s)):
            return f"there is no stage {'before' if s == 0 and op in ('RF', 'SB') else 'after'} it"
        return ""

    def _do(self, rank: int, action: Action) -> tuple[float, float]:
        s, op, item, _ = action
        stage, now = self.stages[s, rank], self.now[rank]
        start = now
        if lack := self._lacks(rank, action):
            self._refuse(rank, lack)
        stage.done[op].add(item)
        if op in ("RF", "RB"):
            start = max(now, self.arrives[action])
        elif op in ("SF", "SB"):
            self.arrives[_arrival(action)] = now + self.seconds.overhead + self.seconds.travel(s, op == "SF")  # type: ignore[index]
        elif op == "F":
            stage.last_forward = item
            stage.kept.add(item)
            stage.most_kept = max(stage.most_kept, len(stage.kept))
            if not self.program.trains:
                stage.kept.discard(item)
            elif not self.program.is_last(s):
                self.under_way[way := (s, rank, self.program.rank_of(s + 1, item))] += 1
                self.most_sent[s] = max(self.most_sent[s], self.under_way[way])
        elif op in ("B", "I", "W"):
            stage.last_input = stage.last_input if op == "W" else item
            if op != "I":
                stage.note_gradient(item)
                self.under_way[s - 1, self.program.rank_of(s - 1, item) if s else -1, rank] -= 1
        elif op == "G":
            stage.summed_at, stage.is_summed = math.inf, True
            came, ranks = self.at_sum[s], self.program.ranks_of(s)
            came[rank] = now
            if len(came) == len(ranks):  # who comes last lets all go on
                for each in ranks:
                    self.stages[s, each].summed_at = max(came.values()) + self.seconds.of(action)
                came.clear()
        elif op == "U":
            start = max(now, stage.summed_at)
            stage.note_update()
        seconds = self.seconds.of(action) if op in COMPUTE or op == "U" else 0.0
        return now if op in ("RF", "RB") else start, start + seconds + self.seconds.overhead

    def _lacks(self, rank: int, action: Action) -> str:
        """Return what an action needs and has not; "" where nothing."""
        s, op, item, version = action
        stage, program = self.stages[s, rank], self.program
        done = stage.done
        if op == "F":
            if stage.reads and item not in done["V"]:
                return f"which version of the weights it reads is not said, {s}V{item} comes first"
            if s and not (item in done["RF"] or (program.rank_of(s - 1, item) == rank and item in self.stages[s - 1, rank].done["F"])):
                return f"its input is not here, {s - 1}F{item} or {s}RF{item} comes first"
        elif op in BACKWARD:
            if item not in done["F"]:
                return f"its forward {s}F{item} is not done"
            if item in done["B"] or item in done["I"]:
                return "its backward is done a second time"
            if not program.is_last(s) and item not in done["RB"]:
                other = program.rank_of(s + 1, item)
                after = self.stages[s + 1, other].done
                if other != rank or not (item in after["B"] or item in after["I"]):
                    return f"its output's gradient is not here, {s + 1}B{item} or {s}RB{item} comes first"
        elif op == "W":
            if item not in done["I"]:
                return f"{s}I{item} comes first"
        elif op == "SF" and item not in done["F"]:
            return f"{s}F{item} comes first"
        elif op == "SB" and not (item in done["B"] or item in done["I"]):
            return f"{s}B{item} or {s}I{item} comes first"
        elif op == "V" and not 0 <= version <= stage.n_updates:
            return f"version {version} of the weights is not there yet, the newest is {stage.n_updates}"
        elif op == "G" and stage.is_summed:
            return "there is no gradient to sum since the last sum"
        elif op == "U" and stage.is_changed:
            return "there is no gradient since the last update"
        elif op == "U" and (self.has_sums or len(program.ranks_of(s)) > 1) and not stage.is_summed:
            return f"the gradient is not summed over the replicas, {s}G comes first"
        if op == "F" and item < stage.last_forward:
            return f"what a stage sends arrives in the order of microbatches, and {s}F{stage.last_forward} was there before"
        if op in ("B", "W") and item < stage.last_back:
            return f"gradients are summed in the order of microbatches, and that of {stage.last_back} is there before"
        if op in BACKWARD and item < stage.last_input:
            return f"what a stage sends back arrives in the order of microbatches, and that of {stage.last_input} was there before"
        return ""

    def _complete(self) -> None:
        """Refuse a program in which something is never done, once all that it lists is."""
        program = self.program
        most = max(stage.n_updates for stage in self.stages.values())
        for (s, rank), stage in self.stages.items():
            done, end = stage.done, len(program.lists[rank])
            for item in range(rank - program.rank_of(s), program.n_items, len(program.ranks_of(s))):
                if item not in done["F"]:
                    raise Fault(rank, end, f"{s}F{item} is never done", self.at)
                if program.trains and item not in done["B"] and not (item in done["I"] and item in done["W"]):
                    raise Fault(rank, end, f"{s}{'W' if item in done['I'] else 'B'}{item} is never done", self.at)
            if not stage.is_changed:
                last = f"{s}{'W' if done['W'] else 'B'}{stage.last_back}"
                raise Fault(rank, end, f"{s}U is never done, the gradient of {last} changes no weights", self.at)
            if stage.n_updates < most:
                raise Fault(rank, end, f"{s}U is done {stage.n_updates} times, and {most} times on another stage", self.at)
            for sent, taken, to in (("SF", "RF", s + 1), ("SB", "RB", s - 1)):
                if lost := [i for i in done[sent] if not 0 <= to < program.n_stages or i not in self.stages[to, program.rank_of(to, i)].done[taken]]:
                    raise Fault(rank, end, f"what {s}{sent}{lost[0]} sends is never received", self.at)


def _arrival(action: Action) -> Action | None:
    """Return what receives what `action` sends."""
    if action.op == "SF":
        return Action(action.stage + 1, "RF", action.item)
    return Action(action.stage - 1, "RB", action.item) if action.op == "SB" else None
