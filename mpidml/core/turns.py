"""Lay the stages of a pipeline on unlike numbers of ranks, which take its microbatches by turns: of r replicas m % r computes microbatch m, there and back.

    2,1    rank 0: stage 0   F0    F2    B0 ...      a stage does what the schedule has the first of its ranks do, were each of all R ranks a stage,
           rank 1: stage 0   F1    F3       B1 ...   and its replicas share that out: so ceil(ranks from it on / r) microbatches are in flight on each
           rank 2: stage 1      F0    B0 F1 B1 ...   under one_f_one_b, which keep all ranks busy, unless a stage has more of them than both
                                                     its neighbours; under gpipe that does no harm
Source: Narayanan et al. 2019 (PipeDream, 1F1B-RR), here with a flush: the gradients of a stage are summed over its replicas, once a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import lcm
from typing import Any

from mpidml.core.action import Action
from mpidml.core.balance import route
from mpidml.core.errors import UserError
from mpidml.core.grid import ProcessGrid, n_ranks_of
from mpidml.core.lowering import known, moves, n_in_update, updates
from mpidml.core.program import Program, program


def parse_replicas(text: str, where: str = "--replicas") -> tuple[int, ...]:
    """Read how many ranks each stage is on, as `2,1`. UserError where a number is none from 1 up."""
    found = []
    for word in map(str.strip, text.split(",")):
        if not (number := n_ranks_of(word)):
            raise UserError(f"{where} {text}: '{word}' is no number of ranks from 1 up; give one for each stage, as 2,1")
        found.append(number)
    return tuple(found)


def agrees(schedule: Any, name: str, replicas: str) -> None:
    """Refuse a schedule under which ranks cannot take turns: one without a flush, or with several stages a rank (UserError)."""
    where, instead = f"--replicas {replicas}", "give one such as one_f_one_b"
    if schedule.n_chunks > 1:
        raise UserError(f"{where}: takes schedules of one stage a rank, --schedule {name} has {schedule.n_chunks}; {instead}")
    if n_in_update(schedule, 1):
        raise UserError(f"{where}: takes schedules that end a batch by a flush, --schedule {name} changes weights under way; {instead}")


def lower_by_turns(schedule: Any, replicas: Sequence[int], n_items: int) -> Program:
    """Return the program of a schedule that has a flush and one stage a rank, on stages of so many `replicas`, none of which lacks a microbatch.

    ValueError where it yields what is none of its own.
    """
    edges, lists = (0, *accumulate(replicas)), list[list[Action]]()
    for s, r in enumerate(replicas):
        computes = (action._replace(stage=s) for action in known(schedule.order(edges[s], edges[-1], n_items)))
        actions = list(moves(updates(computes, 0, n_items, sums=True), edges[-1], len(replicas)))
        lists += [[action for action in actions if action.op in ("G", "U", "X") or route(action.item, r) == turn] for turn in range(r)]
    return program(lists, len(replicas), n_items, schedule.trains, edges)


class TurnGrid(ProcessGrid):
    """Ranks along `pipe` alone, several neighbours at each place: `edges[s]` is the first rank of stage s."""

    def __init__(self, replicas: Sequence[int]) -> None:
        super().__init__({"pipe": len(replicas)})
        self.replicas, self.edges = tuple(replicas), (0, *accumulate(replicas))
        self.n_ranks = self.edges[-1]

    def rank(self, **at: int) -> int:
        """Return the first rank of the stage at these coordinates."""
        return self.edges[super().rank(**at)]

    def coords(self, rank: int) -> dict[str, int]:
        """Return where a rank's stage is."""
        return super().coords(next(s for s, edge in enumerate(self.edges[1:]) if rank < edge))

    def ranks(self, stage: int) -> list[int]:
        """Return the ranks of a stage."""
        return list(range(self.edges[stage], self.edges[stage + 1]))

    def turn(self, rank: int) -> tuple[int, int]:
        """Return which turn a rank takes of how many at its stage."""
        stage = self.coords(rank)["pipe"]
        return rank - self.edges[stage], self.replicas[stage]

    def ways(self, a: Mapping[str, int], b: Mapping[str, int]) -> list[tuple[int, int]]:
        """Return from which rank to which microbatch after microbatch goes, over and over: each pair once in as many as both stages have turns in common."""
        s, t = a["pipe"], b["pipe"]
        n, m = self.replicas[s], self.replicas[t]
        return [(self.edges[s] + route(item, n), self.edges[t] + route(item, m)) for item in range(lcm(n, m))]

    def name(self, rank: int) -> str:
        """Name a rank by its stage, and its turn where there are several."""
        turn, n = self.turn(rank)
        return f"pipe {self.coords(rank)['pipe']}" + f" turn {turn}" * (n > 1)

    def __str__(self) -> str:
        return f"pipe={len(self.replicas)} on {','.join(map(str, self.replicas))} ranks"
