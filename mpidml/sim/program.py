"""Turn a replayed program of a pipeline into the traces that its run on MPI would leave: the same actions, on virtual clocks."""

from __future__ import annotations

from mpidml.core.action import COMPUTE, MOVES, TRACED, Action
from mpidml.core.program import Program
from mpidml.core.replay import Replay
from mpidml.core.trace import Array, Trace


def traces(program: Program, run: Replay, clock: int = 0) -> list[dict[str, Array]]:
    """Return of each rank the columns of `core.trace.Trace`: the clock of an event is that of its program, its peer the other rank of a message."""
    found = [Trace() for _ in range(program.n_ranks)]
    reads = [{(stage, item): version for stage, op, item, version in actions if op == "V"} for actions in program.lists]
    for rank, action, start, end in run.events:
        if kind := TRACED.get(action.op):
            version = reads[rank].get(action[::2], -1) if action.op in COMPUTE else -1
            found[rank].add(kind, start, end - start, clock, peer=_peer(program, action), stage=action.stage, item=action.item, version=version)
    return [trace.columns() for trace in found]


def _peer(program: Program, action: Action) -> int:
    if action.op not in MOVES:
        return -1
    return program.rank_of(action.stage + (1 if action.op in ("SF", "RB") else -1), action.item)
