"""Carry one rank's rounds out over a communicator, with persistent requests that are made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.core.rounds import Array, Move, Round, moved

PIECE_NBYTES = 1 << 19
"""A longer move travels in pieces of this size, so that what has come is added while the rest is on its way."""


def times(a: Array, factor: float) -> None:
    """Compute a *= factor."""
    a *= a.dtype.type(factor)


class Carry:
    """The rounds of one rank on `buffer`, over and over: `start`, then `test` until it is true.

    In a round whose sends overlap its receives, what comes is added when the sends have left; elsewhere as it comes, piece by piece.
    `joins`: what is done instead of adding, as np.maximum, where rounds have no weights; `scales`: how those that have are scaled. Of a buffer that is no
    host's, `empty` allocates memory as it is, and `settled()` says whether all that was joined and scaled is there.
    """

    def __init__(
        self,
        comm: Any,
        rounds: Sequence[Round],
        buffer: Array,
        joins: Callable[..., Any] = np.add,
        empty: Callable[..., Array] = np.empty,
        settled: Callable[[], bool] = lambda: True,
        scales: Callable[[Any, float], None] = times,
    ) -> None:
        self.buffer, self.settled = buffer, settled
        self.n_rounds, self.nbytes = len(rounds), moved(rounds) * buffer.itemsize
        self.rounds = [_Posted(comm, each, buffer, tag, joins, scales, empty) for tag in [comm.new_tag()] for each in rounds]
        self.at, self.taken = self.n_rounds, False

    def start(self) -> None:
        """Begin the first round."""
        if self.at < self.n_rounds:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        self.at = 0
        if self.rounds:
            self.rounds[0].start()

    def test(self) -> bool:
        """Take what has come, and begin the next round when one has ended."""
        while self.at < self.n_rounds:
            self.taken = self.taken or self.rounds[self.at].test()
            if not self.taken or not self.settled():
                return False
            self.taken = False
            self.at += 1
            if self.at < self.n_rounds:
                self.rounds[self.at].start()
        return True

    def late(self) -> list[int]:
        """Return the ranks whose part has not come."""
        return self.rounds[self.at].late() if self.at < self.n_rounds else []

    def free(self) -> None:
        """Free the requests."""
        for each in self.rounds:
            each.free()


class _Posted:
    """One round with its requests; `scratch` holds what is to be added."""

    def __init__(
        self, comm: Any, each: Round, buffer: Array, tag: int, joins: Callable[..., Any], scales: Callable[[Any, float], None], empty: Callable[..., Array]
    ) -> None:
        self.weights, self.buffer, self.joins, self.scales = each.weights, buffer, joins, scales
        sends, receives = ([piece for move in moves for piece in _pieces(move, buffer.itemsize)] for moves in (each.sends, each.receives))
        overlaps = any(a.lo < b.hi and b.lo < a.hi for a in sends for b in receives)
        self.deferred = bool(each.weights) or overlaps
        into_place = not each.adds and not each.weights
        self.scratch = empty(0 if into_place else sum(piece.hi - piece.lo for piece in receives), buffer.dtype)
        # A range that comes and is a copy may not be one that leaves: no algorithm needs it.
        if into_place and overlaps:
            raise ValueError("rounds: a range leaves and is replaced in one round")
        factors = [w for move, w in zip(each.receives, each.weights[1:], strict=False) for _ in _pieces(move, buffer.itemsize)]
        self.receives: list[tuple[Any, Array, Array, float, int]] = []
        at = 0
        for i, piece in enumerate(receives):
            n, target = piece.hi - piece.lo, buffer[piece.lo : piece.hi]
            source = target if into_place else self.scratch[at : at + n]
            at += n
            self.receives.append((comm.Recv_init(source, piece.peer, tag), source, target, factors[i] if factors else 1.0, piece.peer))
        self.sends = [comm.Send_init(buffer[piece.lo : piece.hi], piece.peer, tag) for piece in sends]
        self.takers = {piece.peer for piece in sends}
        self.into_place = into_place
        self.n_taken = self.n_left = 0

    def start(self) -> None:
        self.n_taken = self.n_left = 0
        for request, *_ in self.receives:
            request.Start()
        for request in self.sends:
            request.Start()

    def test(self) -> bool:
        receives, sends = self.receives, self.sends
        while self.n_taken < len(receives) and receives[self.n_taken][0].Test():
            if not (self.deferred or self.into_place):
                _, source, target, _, _ = receives[self.n_taken]
                self.joins(target, source, out=target)
            self.n_taken += 1
        while self.n_left < len(sends) and sends[self.n_left].Test():
            self.n_left += 1
        if self.n_taken < len(receives) or self.n_left < len(sends):
            return False
        if self.deferred:
            self._add_all()
        return True

    def _add_all(self) -> None:
        if self.weights:
            self.scales(self.buffer, self.weights[0])
        for _, source, target, weight, _ in self.receives:
            if self.weights:
                self.scales(source, weight)
            self.joins(target, source, out=target)

    def late(self) -> list[int]:
        return sorted({peer for *_, peer in self.receives[self.n_taken :]} or self.takers)

    def free(self) -> None:
        for request in [*(request for request, *_ in self.receives), *self.sends]:
            request.Free()


def _pieces(move: Move, itemsize: int) -> list[Move]:
    """Cut a move into pieces; none for an empty one."""
    step = max(1, PIECE_NBYTES // itemsize)
    return [Move(move.peer, lo, min(move.hi, lo + step)) for lo in range(move.lo, move.hi, step)]
