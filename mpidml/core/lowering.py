"""Turn a schedule, which lists computes alone, into a program that can run: one pass after the other adds moves, versions of weights, sums and updates.

    schedule    0F0 0F1 0B0 0B1
    updates     ... 0B1 0G 0U                                where all gradients of an update are there: their sum over replicas, and the change
    versions    0V0@0 0F0 ... 0V2@1 0F2                      which weights a microbatch reads, where they change under way
    moves       0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1 0G 0U    what a compute needs from another rank, just before it; what it makes for one, just after:
                                                             nobody waits for an update of others
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpidml.core.action import BACKWARD, COMPUTE, Action
from mpidml.core.program import Program, program


def lower(schedule: Any, n_ranks: int, n_items: int, sums: bool = False) -> Program:
    """Return the program of `n_items` microbatches on `n_ranks`; `sums`: gradients are summed over replicas of each stage before an update.

    ValueError where the schedule cannot be for so many ranks, or yields what is none of its own.
    """
    n_stages = n_ranks * schedule.n_chunks
    lists = []
    for rank in range(n_ranks):
        every = n_in_update(schedule, n_ranks) if schedule.trains else 0
        actions = known(schedule.order(rank, n_ranks, n_items))
        if schedule.trains:
            actions = updates(actions, every, n_items, sums)
        if every:
            actions = versions(actions, schedule, n_ranks)
        lists.append(moves(actions, n_ranks, n_stages))
    return program(lists, n_stages, n_items, schedule.trains)


def n_in_update(schedule: Any, n_ranks: int) -> int:
    """Return after how many microbatches a schedule changes the weights, 0 for once a batch; ValueError where it gives no such number."""
    every = schedule.update_every(n_ranks)
    if type(every) is not int or every < 0:
        raise ValueError(f"update_every gives {every}; let it give 0 for once a batch, or how many microbatches make an update")
    return every


def known(actions: Iterator[Action]) -> Iterator[Action]:
    """Pass on what a schedule may yield: a change of weights, or a sum, of its own would be one too many."""
    for action in actions:
        if not isinstance(action, Action) or action.op not in (*COMPUTE, "X") or type(action.stage) is not int or type(action.item) is not int:
            raise ValueError(f"its order yields {action!s}; let it yield F, B, I and W of whole microbatches, and X, alone")
        yield action


def moves(actions: Iterator[Action], n_ranks: int, n_stages: int) -> Iterator[Action]:
    """Add receives and sends; neighbours on one rank hand over without."""
    for action in actions:
        s, op, item, _ = action
        before, after = s > 0 and n_ranks > 1, s < n_stages - 1 and n_ranks > 1
        if op == "F":
            if before:
                yield Action(s, "RF", item)
            yield action
            if after:
                yield Action(s, "SF", item)
        elif op in BACKWARD:
            if after:
                yield Action(s, "RB", item)
            yield action
            if before:
                yield Action(s, "SB", item)
        else:
            yield action


def updates(actions: Iterator[Action], every: int, n_items: int, sums: bool) -> Iterator[Action]:
    """Add sums and updates: after each `every` microbatches of a stage and after its last one, or for 0 at the end of all."""
    left, due = dict[int, int](), list[Action]()
    for action in actions:
        yield action
        s, op, _item, _ = action
        if op not in ("B", "W"):
            continue
        done = left[s] = left.get(s, 0) + 1
        ends = done == n_items
        if ends or (every and not done % every):
            if sums:
                yield Action(s, "G")
            if every:
                yield Action(s, "U")
            else:
                due.append(Action(s, "U"))
    yield from due


def versions(actions: Iterator[Action], schedule: Any, n_ranks: int) -> Iterator[Action]:
    """Add before each forward which version of the weights it reads, and its backward after it."""
    n_updates = dict[int, int]()
    for action in actions:
        if action.op == "F":
            newest = n_updates.get(action.stage, 0)
            wanted = schedule.reads(action.item, n_ranks)
            yield Action(action.stage, "V", action.item, newest if wanted < 0 else wanted)
        elif action.op == "U":
            n_updates[action.stage] = n_updates.get(action.stage, 0) + 1
        yield action


def computes(program_: Program) -> list[list[Action]]:
    """Return of each rank the computes alone."""
    return [[action for action in actions if action.op in COMPUTE] for actions in program_.lists]


def late_reads(program_: Program, every: int) -> list[int]:
    """Return for each `every` microbatches of a program, which make an update, how many updates old the weights were that they read, on the stage where most."""
    found = [0] * (program_.n_items // every)
    for actions in program_.lists:
        for _, op, item, version in actions:
            if op == "V":
                found[item // every] = max(found[item // every], item // every - version)
    return found
