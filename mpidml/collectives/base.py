"""Define what a collective is, and carry out on MPI those that are written down as rounds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mpidml.core import plugins
from mpidml.core.errors import UserError, WaitTimeout
from mpidml.core.rounds import Array, Move, Round, Rounds, moved

FOLDER = "mpidml.collectives"
PIECE_NBYTES = 1 << 19
"""A longer move travels in pieces of this size, so that what has come is added while the rest is on its way."""
WORK_SECONDS = 10e-6
"""A test that takes longer has summed, and was no idle look."""
SPIN_SECONDS, LEAST_NAP_SECONDS, LONGEST_NAP_SECONDS = 100e-6, 20e-6, 1e-3


class Sum:
    """One buffer's sum over all ranks, prepared once and started again each step; a ticket: `start`, then `test` until it is true, or `wait`.

    Between `start` and the end nobody may touch the buffer. `nbytes` and `n_rounds`: what this rank sends at each start, by the formula of the source.
    """

    nbytes = n_rounds = 0
    picked = ""
    """The algorithm, where one was chosen."""

    def start(self) -> None:
        """Begin; returns at once. Every rank starts its sums in the same order."""
        raise NotImplementedError

    def test(self) -> bool:
        """Move on as far as possible without waiting; return whether the sum is there."""
        raise NotImplementedError

    def late(self) -> list[int]:
        """Return the ranks that are waited for, as far as they are known."""
        return []

    def wait(self, limit_seconds: float = 300.0) -> tuple[float, int]:
        """Move on until the sum is there: spin a little, then leave the core to others. WaitTimeout after the limit.

        Return the seconds in which there was nothing to do, and the rank that came last (-1: none was waited for, or it is not known).
        """
        began = now = time.perf_counter()
        worked, last, nap = 0.0, -1, LEAST_NAP_SECONDS
        while not self.test():
            after = time.perf_counter()
            worked += after - now if after - now > WORK_SECONDS else 0.0
            last = max(self.late(), default=last)
            waited = after - began
            if waited > limit_seconds:
                raise WaitTimeout(f"sum over ranks: waits for {self.waits_for()} for {waited:.1f} s; the limit is {limit_seconds:g} s (--wait-limit)")
            if waited > SPIN_SECONDS:
                time.sleep(nap)
                nap = min(LONGEST_NAP_SECONDS, waited / 8)
            now = time.perf_counter()
        after = time.perf_counter()
        worked += after - now if after - now > WORK_SECONDS else 0.0
        return after - began - worked, last

    def waits_for(self) -> str:
        """Say who is waited for."""
        return f"rank {', '.join(map(str, late))}" if (late := self.late()) else "the others"

    def free(self) -> None:
        """Let requests and memory go; no sum may be under way."""


class Done(Sum):
    """Nothing is left to do."""

    def start(self) -> None:
        """Do nothing."""

    def test(self) -> bool:
        """Return true."""
        return True


class Halves(NamedTuple):
    """A sum in two halves, between which each rank changes the weights of its own range [lo, hi) only.

    After `reduce` the sum of the own range lies in `total`; `gather` brings the changed weights of all ranges to all ranks. `shares`: whether the ranks
    own different ranges; if not, each has the whole sum and changes all weights by itself, to the same bits.
    """

    reduce: Sum
    gather: Sum
    lo: int
    hi: int
    total: Array
    shares: bool


class Collective:
    """An algorithm that sums buffers over the ranks of `comm`. A plug-in file holds one, that works without arguments.

    Those that are rounds give `rounds` alone. `exact`: the result is the sum on every rank (otherwise, say, a mean with neighbours).
    """

    exact: ClassVar[bool] = True
    comm: Any

    def open(self, comm: Any) -> None:
        """Take the communicator (Collective on comm)."""
        self.comm = comm

    def rounds(self, rank: int, size: int, n: int) -> Rounds:
        """Return the part of `rank` of `size` in the sum of n elements."""
        raise NotImplementedError

    def allocate(self, n: int, dtype: Any) -> Array:
        """Return n zeros where this algorithm is fastest with them (Collective on comm)."""
        return np.zeros(n, dtype)

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`, 1-D and contiguous, that stays where it is (Collective on comm, same order on every rank).

        UserError on all ranks where lengths or types differ.
        """
        check_alike(self.comm, buffer)
        part = self.rounds(self.comm.rank, self.comm.size, buffer.size)
        return RoundSum(self.comm, (*part.reduce, *part.gather), buffer)

    def weights(self, n: int, dtype: Any) -> Array:
        """Return n zeros for the weights that `halves` keeps alike (Collective on comm): of each rank, or where ranks share memory one for all."""
        return np.zeros(n, dtype)

    def halves(self, gradient: Array, weights: Array) -> Halves:
        """Prepare the sum of `gradient` for a step that changes `weights`, both of one length (Collective on comm, same order on every rank)."""
        if type(self).rounds is Collective.rounds:
            return Halves(self.plan(gradient), Done(), 0, gradient.size, gradient, False)
        check_alike(self.comm, gradient)
        part = self.rounds(self.comm.rank, self.comm.size, gradient.size)
        reduce, gather = RoundSum(self.comm, part.reduce, gradient), RoundSum(self.comm, part.gather, weights)
        return Halves(reduce, gather, part.lo, part.hi, gradient[part.lo : part.hi], bool(part.gather))

    def pick(self, nbytes: int) -> Collective:
        """Return the collective that sums buffers of `nbytes`: this one, unless it is one that chooses."""
        return self

    def free(self) -> None:
        """Let communicators and windows go (Collective on comm)."""


def make_collective(text: str, comm: Any) -> Collective:
    """Build the collective that `text` describes ("ring", "hierarchical:between=ring") on `comm` (Collective on comm)."""
    collective: Collective = plugins.make(FOLDER, text)
    collective.open(comm)
    return collective


def check_alike(comm: Any, buffer: Array) -> None:
    """Refuse a buffer that is not flat, or whose length or type differs between ranks: the same UserError on all of them (Collective on comm)."""
    if comm.size == 1:
        return
    found: list[tuple[int, str, bool]] = comm.allgather((buffer.size, buffer.dtype.name, buffer.ndim == 1 and buffer.flags.c_contiguous))
    for rank, (n, dtype, flat) in enumerate(found):
        if not flat:
            raise UserError(f"sum over ranks: the buffer of rank {rank} is not one flat, contiguous array; give buffer.reshape(-1) of one that is")
        if (n, dtype) != found[0][:2]:
            here = f"{found[0][0]} x {found[0][1]}"
            raise UserError(f"sum over ranks: rank 0 gives {here}, rank {rank} gives {n} x {dtype}; give buffers of one length and type on every rank")


class RoundSum(Sum):
    """Carry out one rank's rounds with persistent requests, made once.

    In a round whose sends overlap its receives, what comes is added when the sends have left; elsewhere as it comes, piece by piece.
    """

    def __init__(self, comm: Any, rounds: Sequence[Round], buffer: Array) -> None:
        self.buffer = buffer
        self.n_rounds, self.nbytes = len(rounds), moved(rounds) * buffer.itemsize
        self.rounds = [_Posted(comm, each, buffer, tag) for tag in [comm.new_tag()] for each in rounds]
        self.at = self.n_rounds

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
            if not self.rounds[self.at].test():
                return False
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

    def __init__(self, comm: Any, each: Round, buffer: Array, tag: int) -> None:
        self.weights, self.buffer = each.weights, buffer
        sends, receives = ([piece for move in moves for piece in _pieces(move, buffer.itemsize)] for moves in (each.sends, each.receives))
        overlaps = any(a.lo < b.hi and b.lo < a.hi for a in sends for b in receives)
        self.deferred = bool(each.weights) or overlaps
        into_place = not each.adds and not each.weights
        self.scratch = np.empty(0 if into_place else sum(piece.hi - piece.lo for piece in receives), buffer.dtype)
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
                np.add(target, source, out=target)
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
            self.buffer *= self.buffer.dtype.type(self.weights[0])
        for _, source, target, weight, _ in self.receives:
            if self.weights:
                source *= self.buffer.dtype.type(weight)
            np.add(target, source, out=target)

    def late(self) -> list[int]:
        return sorted({peer for *_, peer in self.receives[self.n_taken :]} or self.takers)

    def free(self) -> None:
        for request in [*(request for request, *_ in self.receives), *self.sends]:
            request.Free()


def _pieces(move: Move, itemsize: int) -> list[Move]:
    """Cut a move into pieces; none for an empty one."""
    step = max(1, PIECE_NBYTES // itemsize)
    return [Move(move.peer, lo, min(move.hi, lo + step)) for lo in range(move.lo, move.hi, step)]
