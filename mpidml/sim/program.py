"""Turn a replayed program of a pipeline into the traces that its run on MPI would leave: the same kinds, on virtual clocks."""

from __future__ import annotations

from mpidml.core.action import MOVES, TRACED, Action
from mpidml.core.program import Program
from mpidml.core.replay import Replay
from mpidml.core.trace import Array, Trace


def traces(program: Program, run: Replay) -> list[dict[str, Array]]:
    """Return of each rank the columns of `core.trace.Trace`: the clock of an event is its microbatch, its peer the other rank of a message."""
    found = [Trace() for _ in range(program.n_ranks)]
    for rank, action, start, end in run.events:
        if kind := TRACED.get(action.op):
            found[rank].add(kind, start, end - start, clock=action.item, peer=_peer(program, action))
    return [trace.columns() for trace in found]


def _peer(program: Program, action: Action) -> int:
    if action.op not in MOVES:
        return -1
    return program.rank_of(action.stage + (1 if action.op in ("SF", "RB") else -1), action.item)
