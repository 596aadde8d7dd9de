"""Count the bytes that a rank's memory holds while it trains: weights, gradient and the room in which microbatches leave theirs, optimizer state, activations.

Rows of data are not counted. A plan compares candidates by it, and a run is held to its limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpidml.nn.parts import Part


def replica_nbytes(part: Part, rows: int, n_parts: int, state: float) -> float:
    """Return the bytes of a rank that has the whole network: it computes `rows` at once, `n_parts` times a batch; `state`: bytes of optimizer for each of weights."""
    return part.parameter_nbytes * (2 + (n_parts > 1) + state) + rows * (part.comes + part.kept)


def stages_nbytes(
    parts: Sequence[Part], m: int, kept: Sequence[int], hops: Sequence[bool], state: float, recompute: bool, versions: Sequence[int] = ()
) -> list[float]:
    """Return the bytes of a rank at each place of a pipe, on which stage s is at s % places.

    `m`: rows of a microbatch; `kept`: of how many microbatches a stage has activations at once; `hops[p]`: whether a rank at p is on another host than its
    neighbour at p + 1, the last one than the first; `state`: bytes of optimizer for each byte of weights; `versions` of the weights of each stage: one.
    """
    n, ranks = len(hops), [0.0] * len(hops)
    for s, part in enumerate(parts):
        p = s % n
        slots = m * part.kept * (1 if recompute else kept[s])
        comes = m * part.comes * (max(kept[s - 1 : s + 1]) if s else kept[0])
        goes = m * part.goes * max(kept[s : s + 2]) if s + 1 < len(parts) else 0.0  # of the gradient, which comes back
        if s:  # where neighbours are on another host, what is sent has slots of its own
            comes *= 1 + hops[(p or n) - 1]
        goes *= 1 + hops[p]
        ranks[p] += part.parameter_nbytes * (2 + (versions[s] if versions else 1) + state) + slots + comes + goes
    return ranks
