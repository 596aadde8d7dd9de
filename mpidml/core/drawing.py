"""Draw a replayed program as text: time across, ranks down, a cell for each unit of time; dashes where an action takes several.

    rank 0   F0 F1       B0---    B1---      a cell is what the shortest compute takes, or a part of it
    rank 1      F0 B0--- F1 B1---            of several stages a rank has it says which, as 2F0; | is a wait for all
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mpidml.core.action import COMPUTE, Action
from mpidml.core.program import Program
from mpidml.core.replay import Event, Replay

_NEARLY = 1e-9  # sums of costs are rounded
_MOST_PARTS = 4
MOST_RANKS = 32


class Drawing(NamedTuple):
    """The lines of a drawing, and how many of its columns and ranks were left out."""

    lines: list[str]
    n_columns: int
    n_columns_left_out: int
    n_ranks_left_out: int

    def __str__(self) -> str:
        return "\n".join(self.lines)


def draw(program: Program, run: Replay, width: int = 0) -> Drawing:
    """Draw `run` in lines of at most `width` letters (0: of any length): where it is longer its middle is left out, so that fill and drain are seen."""
    unit = _unit(run)
    named = program.n_stages > program.n_ranks
    n_letters = 1 + max((len(label(e.action, named)) for e in run.events if e.action.op in COMPUTE), default=1)
    n = math.ceil(run.seconds / unit - _NEARLY)
    ranks, n_ranks_left_out = _shown(program.n_ranks)
    first = {rank: f"rank {rank}".ljust(len(f"rank {program.n_ranks - 1}") + 3) for rank in ranks}
    room = max(2, (width - len(first[ranks[0]]) - 4) // n_letters) if width else n
    spans = [(0, n)] if n <= room or width >= len(first[ranks[0]]) + n * n_letters else [(0, (room + 1) // 2), (n - room // 2, n)]
    of_rank: dict[int, list[Event]] = {rank: [] for rank in ranks}
    for event in run.events:
        if event.rank in of_rank:
            of_rank[event.rank].append(event)
    lines = []
    for rank in ranks:
        if n_ranks_left_out and rank == ranks[-1] - MOST_RANKS // 2 + 1:
            lines.append("...")
        parts = [_part(of_rank[rank], span, unit, n_letters, named) for span in spans]
        lines.append((first[rank] + "... ".join(parts)).rstrip())
    return Drawing(lines, n, n - sum(end - begin for begin, end in spans), n_ranks_left_out)


def label(action: Action, with_stage: bool) -> str:
    """Return what stands in a cell: F0, or 2F0 where a rank has several stages."""
    return str(action) if with_stage else f"{action.op}{action.item}"


def _unit(run: Replay) -> float:
    """Return the seconds of a cell: the shortest compute, or a part of it in which all computes are whole."""
    lengths = {e.end - e.start for e in run.events if e.action.op in COMPUTE and e.end > e.start}
    shortest = min(lengths, default=1.0)
    for n_parts in range(1, _MOST_PARTS + 1):
        cells = [length * n_parts / shortest for length in lengths]
        if all(abs(n - round(n)) < 1e-6 * n for n in cells):
            return shortest / n_parts
    return shortest


def _shown(n_ranks: int) -> tuple[list[int], int]:
    if n_ranks <= MOST_RANKS:
        return list(range(n_ranks)), 0
    return [*range(MOST_RANKS // 2), *range(n_ranks - MOST_RANKS // 2, n_ranks)], n_ranks - MOST_RANKS


def _part(events: Sequence[Event], span: tuple[int, int], unit: float, n_letters: int, named: bool) -> str:
    """Return the letters of the columns of `span`."""
    begin, end = span
    letters = [" "] * ((end - begin) * n_letters)
    for event in events:
        at = math.floor(event.start / unit + _NEARLY)
        until = math.floor(event.end / unit + _NEARLY)
        if event.action.op == "X":
            at, text = until * n_letters - 1, "|"
        elif event.action.op in COMPUTE and at < end and until > begin:
            dashes = n_letters * (until - at) - 1 if until > at + 1 else 0
            at, text = at * n_letters, label(event.action, named).ljust(dashes, "-")
        else:
            continue
        for i, letter in enumerate(text, at - begin * n_letters):
            if 0 <= i < len(letters):
                letters[i] = letter
    return "".join(letters)
