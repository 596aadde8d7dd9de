"""Define what a collective is, and carry out on MPI those that are written down as rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mpidml.core import plugins
from mpidml.core.carry import Carry
from mpidml.core.current_wait import MAIN, Wait
from mpidml.core.errors import UserError, WaitTimeout
from mpidml.core.rounds import Array, Rounds, Sizes, sizes
from mpidml.core.same_sums import compare_starts

FOLDER = "mpidml.collectives"
NUMBERS = "biufc"
"""Kinds of types that have sums."""
WORK_SECONDS = 10e-6
"""A test that takes longer has summed, and was no idle look."""
QUICK_LOOKS = 16
"""With which a wait begins: nothing else is done between them."""
LEAST_NAP_SECONDS, LONGEST_NAP_SECONDS = 20e-6, 1e-3


def spin_seconds(n_ranks: int, n_cores: int) -> float:
    """Return how long a wait may spin: not at all where more ranks are on this host than there are cores."""
    return 0.0 if n_ranks > n_cores else 100e-6


SPIN_SECONDS = spin_seconds(1, 1)
"""As of a rank that is alone; who knows the launcher sets it."""


class Sum:
    """One buffer's sum over all ranks, prepared once and started again each step; a ticket: `start`, then `test` until it is true, or `wait`.

    Between `start` and the end nobody may touch the buffer. `nbytes` and `n_rounds`: what this rank sends at each start, by the formula of the source.
    """

    nbytes = n_rounds = 0
    picked = ""
    """The algorithm, where one was chosen."""
    ranks: Sequence[int] = ()
    """The job's numbers of these ranks, by which a report names them, and one that has left is missed; none where they are all ranks, in their order."""

    def start(self) -> None:
        """Begin; returns at once. Every rank starts its sums in the same order."""
        raise NotImplementedError

    def test(self) -> bool:
        """Move on as far as possible without waiting; return whether the sum is there."""
        raise NotImplementedError

    def late(self) -> list[int]:
        """Return the ranks that are waited for, as far as they are known."""
        return []

    def wait(self, limit_seconds: float = 300.0, meanwhile: Callable[[], None] = lambda: None) -> tuple[float, int]:
        """Move on until the sum is there: spin a little, then leave the core to others, and `meanwhile` do this. WaitTimeout after the limit.

        Return the seconds in which there was nothing to do, and the rank that came last (-1: none was waited for, or it is not known).
        """
        began = now = time.perf_counter()
        worked, last, nap, around = 0.0, -1, LEAST_NAP_SECONDS, MAIN.now
        for _ in range(QUICK_LOOKS if SPIN_SECONDS else 0):  # of small sums between ranks that come together these are all there is
            done = self.test()
            after = time.perf_counter()
            worked += after - now if after - now > WORK_SECONDS else 0.0
            if done:
                return after - began - worked, last
            now = after
        try:
            while not self.test():
                meanwhile()
                after = time.perf_counter()
                worked += after - now if after - now > WORK_SECONDS else 0.0
                last = max(self.late(), default=last)
                waited = after - began
                if waited > limit_seconds:
                    raise WaitTimeout(f"sum over ranks: waits for {self.waits_for()} for {waited:.1f} s; the limit is {limit_seconds:g} s (--wait-limit)")
                if waited > SPIN_SECONDS:
                    if MAIN.now is around:
                        MAIN.begin(Wait(lambda: f"a sum over ranks from {self.waits_for()}", began, late=self.missing))
                    self.go_on()
                    time.sleep(nap)
                    nap = min(LONGEST_NAP_SECONDS, waited / 8)
                now = time.perf_counter()
        finally:
            MAIN.end(around)
        after = time.perf_counter()
        worked += after - now if after - now > WORK_SECONDS else 0.0
        return after - began - worked, last

    def go_on(self) -> None:
        """Let MPI move messages while this waits, of which somebody else may be in need; a sum of messages does so when it is tested."""

    def waits_for(self) -> str:
        """Say who is waited for."""
        late = [self.ranks[rank] if self.ranks else rank for rank in self.late()]
        return f"rank {', '.join(map(str, late))}" if late else "the others"

    def missing(self) -> list[int]:
        """Return the job's numbers of the ranks that are waited for: of all where those are not known, of none where nobody has given `ranks`."""
        late = self.late()
        return [self.ranks[rank] for rank in late] if late and self.ranks else list(self.ranks)

    def free(self) -> None:
        """Let requests and memory go; no sum may be under way."""


class Done(Sum):
    """Nothing is left to do."""

    def start(self) -> None:
        """Do nothing."""

    def test(self) -> bool:
        """Return true."""
        return True


class Both(Sum):
    """One sum, and when it is there another, as one; `between` is called in between."""

    def __init__(self, first: Sum, second: Sum, between: Callable[[], None] = lambda: None) -> None:
        self.first, self.second, self.between = first, second, between
        self.nbytes, self.n_rounds = first.nbytes + second.nbytes, first.n_rounds + second.n_rounds
        self.phase = 2

    def start(self) -> None:
        """Begin the first."""
        if self.phase < 2:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        self.phase = 0
        self.first.start()

    def test(self) -> bool:
        """Go on."""
        if self.phase == 0 and self.first.test():
            self.between()
            self.second.start()
            self.phase = 1
        if self.phase == 1 and self.second.test():
            self.phase = 2
        return self.phase == 2

    def late(self) -> list[int]:
        """Return the ranks that the one under way waits for."""
        return self.first.late() if self.phase == 0 else self.second.late()

    def free(self) -> None:
        """Free both."""
        self.first.free()
        self.second.free()


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
    `by_timing`: what is added to what depends on measured times, so no two runs need have the same bits.
    `in_memory`: on one host `weights` are one array for all ranks.
    """

    exact: ClassVar[bool] = True
    by_timing: ClassVar[bool] = False
    in_memory: ClassVar[bool] = False
    comm: Any

    def open(self, comm: Any) -> None:
        """Take the communicator (Collective on comm)."""
        self.comm = comm

    def rounds(self, rank: int, size: int, n: int) -> Rounds:
        """Return the part of `rank` of `size` in the sum of n elements."""
        raise NotImplementedError

    def sizes(self, rank: int, size: int, n: int) -> Sizes:
        """Return what those rounds move; where they are many, better without building them."""
        return sizes(self.rounds(rank, size, n))

    def allocate(self, n: int, dtype: Any) -> Array:
        """Return n zeros where this algorithm is fastest with them (Collective on comm)."""
        return np.zeros(n, dtype)

    def refuse(self, dtype: Any) -> None:
        """Raise UserError for a type of numbers that this algorithm cannot take; by default it takes all."""

    def check(self, buffer: Array) -> None:
        """Raise the same UserError on all ranks for buffers that differ or cannot be taken; all have met before any raises (Collective on comm)."""
        check_alike(self.comm, buffer)
        self.refuse(buffer.dtype)

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`, 1-D and contiguous, that stays where it is (Collective on comm, same order on every rank).

        UserError on all ranks where lengths or types differ.
        """
        self.check(buffer)
        part = self.rounds(self.comm.rank, self.comm.size, buffer.size)
        return RoundSum(self.comm, (*part.reduce, *part.gather), buffer)

    def plan_beside(self, buffer: Array) -> Sum:
        """Prepare the sum of what is none of a gradient, as votes are: as `plan` does, which may be made for gradients alone (Collective on comm)."""
        return self.plan(buffer)

    def weights(self, n: int, dtype: Any) -> Array:
        """Return n zeros for the weights that `halves` keeps alike (Collective on comm): of each rank, or where ranks share memory one for all."""
        return np.zeros(n, dtype)

    def halves(self, gradient: Array, weights: Array) -> Halves:
        """Prepare the sum of `gradient` for a step that changes `weights`, both of one length (Collective on comm, same order on every rank)."""
        if type(self).rounds is Collective.rounds:
            return Halves(self.plan(gradient), Done(), 0, gradient.size, gradient, False)
        self.check(gradient)
        part = self.rounds(self.comm.rank, self.comm.size, gradient.size)
        reduce, gather = RoundSum(self.comm, part.reduce, gradient), RoundSum(self.comm, part.gather, weights)
        return Halves(reduce, gather, part.lo, part.hi, gradient[part.lo : part.hi], bool(part.gather))

    def largest(self, hosts: Sequence[int]) -> float:
        """Return the largest share that a rank owns between the halves, where `hosts` have so many ranks each; asked of a collective without rounds."""
        return 1 / sum(hosts)

    def pick(self, nbytes: int) -> Collective:
        """Return the collective that sums buffers of `nbytes`: this one, unless it is one that chooses."""
        return self

    def free(self) -> None:
        """Let communicators and windows go (Collective on comm)."""


def make_collective(text: str, comm: Any) -> Collective:
    """Build the collective that `text` describes ("ring", "hierarchical:between=ring") on `comm` (Collective on comm)."""
    collective: Collective = plugins.make(FOLDER, text)
    collective.open(comm)
    if getattr(comm, "checks", None) is not None:
        compare_starts(collective, comm)
    return collective


def check_alike(comm: Any, buffer: Array) -> None:
    """Refuse a buffer that is not flat, holds no numbers, or whose length or type differs between ranks: the same UserError on all of them (Collective on comm)."""
    own = buffer.size, buffer.dtype.str, str(buffer.dtype), buffer.ndim == 1 and buffer.flags.c_contiguous
    found: list[tuple[int, str, str, bool]] = comm.allgather(own) if comm.size > 1 else []  # also of what is refused: the others wait here
    for rank, (n, code, dtype, flat) in enumerate(found):
        if not flat:
            raise UserError(f"sum over ranks: the buffer of rank {rank} is not one flat, contiguous array; give buffer.reshape(-1) of one that is")
        if (n, code) != found[0][:2]:
            here = f"{found[0][0]} x {found[0][2]}"
            raise UserError(f"sum over ranks: rank 0 gives {here}, rank {rank} gives {n} x {dtype}; give buffers of one length and type on every rank")
    if buffer.dtype.kind not in NUMBERS:
        raise UserError(f"sum over ranks: {buffer.dtype} is no type of numbers; give for example float32")


class RoundSum(Carry, Sum):
    """A sum, or a half of one, that is written down as rounds."""
