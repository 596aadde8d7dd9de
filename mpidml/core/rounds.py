"""Write a sum over ranks down as data: in each round a rank sends some ranges of its buffer and takes some.

    ring, 3 ranks      rank 0            rank 1            rank 2
    reduce   0         sends chunk 2     sends chunk 0     sends chunk 1        what comes is added
             1         sends chunk 1     sends chunk 2     sends chunk 0
    gather   0         sends chunk 0     sends chunk 1     sends chunk 2        what comes replaces
             1         sends chunk 2     sends chunk 0     sends chunk 1

The same rounds are executed on MPI, priced by a cost model, and run on plain arrays in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Move(NamedTuple):
    """Elements [lo, hi) of the buffer that go to, or come from, rank `peer`."""

    peer: int
    lo: int
    hi: int


class Round(NamedTuple):
    """What one rank sends and takes at a time; between two ranks the moves of one list come in the order of the other's.

    What comes is added (`adds`) or replaces; with `weights` the buffer becomes weights[0] x itself + weights[i + 1] x the i-th that comes.
    """

    sends: tuple[Move, ...] = ()
    receives: tuple[Move, ...] = ()
    adds: bool = True
    weights: tuple[float, ...] = ()


class Rounds(NamedTuple):
    """One rank's part: after `reduce` it holds the sum of its own range [lo, hi), after `gather` that of the whole buffer."""

    reduce: tuple[Round, ...]
    gather: tuple[Round, ...]
    lo: int
    hi: int


class Sizes(NamedTuple):
    """What one rank's rounds move, without where: elements that are `sent` and `taken` in each, `n_messages` that it sends in all, elements that it owns."""

    sent: Array
    taken: Array
    n_messages: int
    owned: int


def cut(n: int, n_parts: int, part: int) -> tuple[int, int]:
    """Return the elements of a part of [0, n): contiguous parts whose sizes differ by at most one."""
    return n * part // n_parts, n * (part + 1) // n_parts


def moved(rounds: Sequence[Round]) -> int:
    """Return the number of elements that a rank sends."""
    return sum(move.hi - move.lo for each in rounds for move in each.sends)


def sizes(part: Rounds) -> Sizes:
    """Return what a rank's rounds move."""
    rounds = (*part.reduce, *part.gather)
    sent, taken = (np.array([sum(move.hi - move.lo for move in moves) for moves in of], np.int64) for of in ([r.sends for r in rounds], [r.receives for r in rounds]))
    return Sizes(sent, taken, sum(len(each.sends) for each in rounds), part.hi - part.lo)


def priced(of: Sizes, itemsize: int, latency_seconds: float, bytes_per_s: float) -> float:
    """Return the seconds of a rank's rounds, one after the other: each its latency and the larger of what it sends and takes over the bandwidth."""
    seconds = latency_seconds + np.maximum(of.sent, of.taken) * itemsize / bytes_per_s
    return float(np.cumsum(seconds)[-1]) if len(seconds) else 0.0  # in their order, to the bits of a loop


def carried_out(parts: Sequence[Sequence[Round]], buffers: Sequence[Array]) -> int:
    """Carry out the rounds of all ranks on one array each, in place, and return how many rounds that took. ValueError where two ranks do not fit.

    It is what `collectives.base` does on MPI, without MPI: each rank goes on as soon as what it waits for has been sent.
    """
    at = [0] * len(parts)
    sent: dict[tuple[int, int], list[Array]] = {}
    posted: set[tuple[int, int]] = set()
    n_done = 0
    while any(at[rank] < len(rounds) for rank, rounds in enumerate(parts)):
        ready = []
        for rank, rounds in enumerate(parts):
            if at[rank] < len(rounds) and (rank, at[rank]) not in posted:
                posted.add((rank, at[rank]))
                for move in rounds[at[rank]].sends:
                    sent.setdefault((rank, move.peer), []).append(buffers[rank][move.lo : move.hi].copy())
        for rank, rounds in enumerate(parts):
            if at[rank] < len(rounds) and _has_come(rounds[at[rank]], rank, sent):
                ready.append(rank)
        if not ready:
            waiting = {rank: at[rank] for rank, rounds in enumerate(parts) if at[rank] < len(rounds)}
            raise ValueError(f"rounds: nobody can go on; rank -> round: {waiting}")
        for rank in ready:
            each = parts[rank][at[rank]]
            _take(each, [sent[move.peer, rank].pop(0) for move in each.receives], buffers[rank])
            at[rank] += 1
        n_done += 1
    if left := {pair: len(messages) for pair, messages in sent.items() if messages}:
        raise ValueError(f"rounds: nobody takes what was sent; (from, to) -> messages: {left}")
    return n_done


def _has_come(each: Round, rank: int, sent: dict[tuple[int, int], list[Array]]) -> bool:
    wanted: dict[int, int] = {}
    for move in each.receives:
        wanted[move.peer] = wanted.get(move.peer, 0) + 1
    return all(len(sent.get((peer, rank), ())) >= n for peer, n in wanted.items())


def _take(each: Round, came: Sequence[Array], buffer: Array) -> None:
    if each.weights:
        buffer *= each.weights[0]
    for move, values, weight in zip(each.receives, came, each.weights[1:] or [1.0] * len(came), strict=True):
        target = buffer[move.lo : move.hi]
        if values.shape != target.shape:
            raise ValueError(f"rounds: {len(values)} elements came from rank {move.peer} for [{move.lo}, {move.hi})")
        if each.weights:
            target += weight * values
        elif each.adds:
            target += values
        else:
            target[:] = values
