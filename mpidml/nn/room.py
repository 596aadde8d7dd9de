"""Count the bytes that a rank's memory holds while it trains: weights, gradient and the room in which microbatches leave theirs, optimizer state, activations,
also of what is scored, and of stages what comes and goes.

Rows of data are not counted. A plan compares candidates by it, and a run is held to its limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from mpidml.nn.parts import Part


def replica_nbytes(part: Part, rows: int, n_parts: int, state: float) -> float:
    """Return the bytes of a rank that has the whole network: it computes `rows` at once, `n_parts` times a batch; `state`: bytes of optimizer for each of weights."""
    return part.parameter_nbytes * (2 + (n_parts > 1) + state) + rows * (part.comes + part.kept)


def channel_slots(kept: Sequence[int], sent: Sequence[int], s: int) -> int:
    """Return how many slots each way between stages s and s + 1 has: as many as its ends keep microbatches, while one is on its way, or where more are `sent`
    before the next stage is done with them, as it is late with the gradients of its weights, so many.
    """
    return max(kept[s], kept[s + 1] + 1, *sent[s : s + 1])


def stages_nbytes(
    parts: Sequence[Part], rows: int, block: int, n_items: int, kept: Sequence[int], hops: Sequence[bool], state: float, recompute: bool,
    versions: Sequence[int] = (), turns: Sequence[int] = (), sent: Sequence[int] = (),
) -> list[float]:  # fmt: skip
    """Return the bytes of a rank at each place of a pipe, on which stage s is at s % places.

    `rows` of a microbatch, of which `n_items` make an update, and of a `block` that is scored: what comes and goes has room for either; `kept`: of how many
    microbatches a stage has activations at once; `hops[p]`: whether a rank at p shares no memory with its neighbour at p + 1, the last one with the first;
    `state`: bytes of optimizer for each byte of weights; `versions` of the weights of each stage: one; `turns`: how many ranks take turns at each stage: one;
    `sent`: as in a replay, no more than is kept.
    """
    n, ranks, most = len(hops), [0.0] * len(hops), max(rows, block)
    turns = turns or (1,) * len(parts)

    def between(s: int, end: int) -> int:  # slots behind stage s, as the rank at one of its ends has them: where no memory is shared, what is sent has its own
        return channel_slots(kept, sent, s) * (lcm(turns[s], turns[s + 1]) // turns[end]) * (1 + hops[s % n])

    for s, part in enumerate(parts):
        comes = part.comes * (between(s - 1, s) if s else kept[0])
        goes = part.goes * between(s, s) if s + 1 < len(parts) else 0.0  # of the gradient, which comes back
        weights = part.parameter_nbytes * (1 + (n_items > 1) + (versions[s] if versions else 1) + state) + part.places_nbytes
        ranks[s % n] += weights + rows * part.kept * (1 if recompute else kept[s]) + most * (comes + goes) + block * part.scored
    return ranks
