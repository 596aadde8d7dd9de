"""Refuse a program that cannot run before it does: one line says which action lacks what, the table below it shows where.

    one_f_one_b: rank 1, action 4 (1B0): its forward 1F0 is not done; correct the order of the schedule
    rank 0: 0F0 0SF0 0RB0 0B0 0U
    rank 1: 1RF0 >>1B0<< 1F0 1SB0 1U
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mpidml.core.errors import UserError
from mpidml.core.lowering import lower
from mpidml.core.program import Program
from mpidml.core.replay import Fault, Replay, Seconds, replay
from mpidml.core.turns import lower_by_turns


def check(program: Program, where: str = "program", seconds: Seconds | None = None) -> Replay:
    """Replay `program` and return what it was; UserError shows the action that cannot be done. `where`: what the program was made from."""
    try:
        return replay(program, seconds)
    except Fault as fault:
        actions = program.lists[fault.rank]
        action = f"action {fault.position} ({actions[fault.position]})" if fault.position < len(actions) else "at its end"
        table = program.text((fault.rank, fault.position), fault.at)
        raise UserError(f"{where}: rank {fault.rank}, {action}: {fault}; correct the order of the schedule\n{table}") from None


@contextmanager
def guarded(where: str, what: str) -> Iterator[None]:
    """Run a method of a user's schedule, `what`; UserError, which begins with `where`, for all that it raises."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(f"{where}: its {what} ends by {type(error).__name__}{f': {error}' if str(error) else ''}, at {place.filename}:{place.lineno}; correct it") from None


def lowered(schedule: Any, n_ranks: int, n_items: int, where: str, sums: bool = False) -> Program:
    """Return the program of a schedule, as `core.lowering.lower`; UserError where the schedule cannot be for so many ranks."""
    with guarded(where, "order"):
        return lower(schedule, n_ranks, n_items, sums)


def lowered_by_turns(schedule: Any, replicas: Sequence[int], n_items: int, where: str) -> Program:
    """Return the program of a schedule, as `core.turns.lower_by_turns`; UserError where the schedule cannot be for so many ranks."""
    with guarded(where, "order"):
        return lower_by_turns(schedule, replicas, n_items)
