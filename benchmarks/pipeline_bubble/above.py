"""Tell what a clock of a pipeline took above its computes, from when each compute began and how long it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import median

from mpidml.core.action import Action
from mpidml.core.lowering import computes
from mpidml.core.program import Program
from mpidml.core.replay import Seconds, replay

A_BIT = 1e-7
Times = Sequence[tuple[float, float]]
"""Of each compute of a rank, in order: when it began, and its seconds."""


def clock_of(program: Program, times: Sequence[Times]) -> tuple[float, float, float, float]:
    """Return of one clock the share of idle time, the seconds from its first compute to the end of its last, and what is above those of computes, per action.

    What computes alone would take is a replay of the program, each as long as it was. What is above that is divided by the actions of a rank, and by
    those on the longest chain, in which each waits for the one before, on whatever rank: as many as a replay grows by, when each action takes a bit longer.
    """
    took: dict[Action, float] = {}
    for own, of in zip(computes(program), times, strict=True):
        took.update(zip(own, [seconds for _, seconds in of], strict=True))
    wall = max(start + seconds for of in times for start, seconds in of) - min(start for of in times for start, _ in of)
    ideal, grown = (replay(program, Seconds(lambda action: took.get(action, 0.0), overhead=each)).seconds for each in (0.0, A_BIT))
    chain, listed = (grown - ideal) / A_BIT, max(len(actions) for actions in program.lists)
    return 1 - sum(took.values()) / (wall * program.n_ranks), wall, (wall - ideal) / listed, (wall - ideal) / chain


def told(program: Program, clocks: Sequence[Sequence[Times]], others: float) -> str:
    """Return the medians over `clocks` as one JSON line; the first clock, in which memory is first touched, is not counted."""
    found = [clock_of(program, times) for times in clocks[1:]]
    names = ("bubble", "seconds", "of_rank", "of_chain")
    medians = {name: median(of) for name, of in zip(names, zip(*found, strict=True), strict=True)}
    return json.dumps(medians | {"least": min(each for *_, each in found), "others": others})
