"""Bring the replicas of a model together: each rank has its own, and every so many clocks they meet in one of four ways.

    mean             x_i = sum of all x / n
    gossip           x_i = sum over j of W_ij x_j            neighbours on a graph alone; W keeps the mean of all
    elastic          x_i -= a (x_i - c),  c += sum of all a (x_i - c)
    elastic_async    the same by each rank with the centre c when it gets there, one after the other

Without gradients in between all four are linear maps that never take the replicas (and the centre) further apart, gossip for its W, the elastic ones as
long as a (n + 1) <= 2, or a <= 1 where one rank at a time meets the centre: they are 1 - a L, L being the Laplacian of a star with so many leaves.
Replicas may lie on a device: what sums then sums what lies there, and the rest is kernels; a centre that ranks of a host share comes there to be stepped.
Sources: Zhang, Choromanska and LeCun 2015 (elastic averaging); Lian et al. 2017 (gossip); Stich 2019 (local SGD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpidml.collectives.base import Collective, Done, Sum
from mpidml.core.role import Array
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.lock import HostLock
from mpidml.runtime.page_locks import PageLocks

MOST_NOTED = 1000
"""Distances that are kept; of more every other one goes."""


class Replicas:
    """This rank's `replica`, and the `weights` that stand for all of them: here their mean, where `gather` has made it.

    `sums` sums over all ranks, in a buffer of its own; `scratch` is used within calls alone. All of these lie where `backend` computes, `initial` on the
    host. Set `wait` before the first. `squares`: where the mean was known, after which clock, and the squared distance of this replica from it.
    """

    wait: Callable[[Sum], None]
    weights: Any

    def __init__(self, comm: CountedComm, sums: Collective, initial: Array, scratch: Any, backend: Any) -> None:
        """Allocate (Collective on comm)."""
        self.n, self.scratch, self.backend = comm.size, scratch, backend
        with backend.naming("a replica"):
            self.replica = backend.here(initial.copy())
        with backend.naming("the mean of replicas"):
            self.total: Any = sums.allocate(initial.size, initial.dtype)
        self.sum = sums.plan(self.total) if comm.size > 1 else Done()
        self.weights = self.total
        self.squares: list[tuple[int, float]] = []

    def exchange(self, clock: int) -> None:
        """Bring this replica nearer to the others, after `clock` clocks (Collective on comm): here to the mean."""
        self.measure(clock)
        self.backend.copy(self.replica, self.total)

    def gather(self, clock: int) -> None:
        """Bring `weights` to what stands for all replicas (Collective on comm)."""
        self.measure(clock)

    def measure(self, clock: int) -> None:
        """Leave the mean of the replicas in `total`, and note how far this one is from it (Collective on comm), once in a clock."""
        if self.squares and self.squares[-1][0] == clock:
            return
        self.backend.copy(self.total, self.replica)
        self._sum_up()
        self.backend.scale(self.total, 1.0 / self.n)
        self.backend.descend(self.replica, self.scratch, self.total, 1.0)
        self._note(clock)

    def _sum_up(self) -> None:
        self.sum.start()
        self.wait(self.sum)

    def _note(self, clock: int) -> None:
        """Note the length of what is in `scratch`."""
        self.squares.append((clock, float(self.backend.sum_of_squares(self.scratch))))
        if len(self.squares) > MOST_NOTED:  # on every rank at the same clock
            del self.squares[1:-1:2]

    def free(self) -> None:
        """Let requests go."""
        self.sum.free()


class Gossiping(Replicas):
    """Replicas that meet their neighbours by `mixing`; the mean of all is summed up only to be looked at."""

    def __init__(self, comm: CountedComm, sums: Collective, initial: Array, scratch: Any, backend: Any, mixing: Collective) -> None:
        super().__init__(comm, sums, initial, scratch, backend)
        self.mix = mixing.plan(self.replica) if comm.size > 1 else Done()

    def exchange(self, clock: int) -> None:
        """Take the weighted mean with the neighbours."""
        self.mix.start()
        self.wait(self.mix)

    def free(self) -> None:
        """Let requests go."""
        super().free()
        self.mix.free()


class Elastic(Replicas):
    """Replicas that are pulled to a centre, and the centre to them, by `moving_rate`; the centre, alike on every rank, stands for them."""

    def __init__(self, comm: CountedComm, sums: Collective, initial: Array, scratch: Any, backend: Any, moving_rate: float) -> None:
        super().__init__(comm, sums, initial, scratch, backend)
        self.moving_rate, self.weights = moving_rate, self._centre(comm, initial)

    def _centre(self, comm: CountedComm, initial: Array) -> Any:
        """Make room for the centre (Collective on comm)."""
        with self.backend.naming("the centre of replicas"):
            return self.backend.here(initial.copy())

    def exchange(self, clock: int) -> None:
        """Let replica and centre take the steps that their distance says."""
        backend, rate = self.backend, self.moving_rate
        backend.descend(self.replica, self.total, self.weights, 1.0)
        backend.copy(self.scratch, self.total)
        backend.descend_in_place(self.replica, self.total, rate)
        self._sum_up()
        backend.descend_in_place(self.scratch, self.total, 1.0 / self.n)  # the distance from the mean, whatever the centre is
        self._note(clock)
        backend.descend_in_place(self.weights, self.total, -rate)

    def gather(self, clock: int) -> None:
        """Do nothing: the centre is there."""


class ElasticAsync(Elastic):
    """Elastic replicas whose centre lies in memory of the host, so that no rank waits for another's steps; `shown` is the centre when last gathered.

    To a replica of a device it goes up, is stepped there, and comes down again, within the lock.
    """

    def __init__(self, comm: CountedComm, sums: Collective, initial: Array, scratch: Any, backend: Any, moving_rate: float) -> None:
        super().__init__(comm, sums, initial, scratch, backend, moving_rate)
        self.comm, self.lock, self.shown = comm, HostLock(comm), initial.copy()
        self.pages = None if backend.gpu is None else PageLocks(backend.gpu.cupy)
        if self.pages is not None:
            self.pages.lock(self.weights)

    def _centre(self, comm: CountedComm, initial: Array) -> Array:
        centre = comm.shared(initial.size, initial.dtype)
        if comm.host.rank == 0:
            centre[:] = initial
        comm.Barrier()
        return centre

    def exchange(self, clock: int) -> None:
        """Let replica and centre take their steps while no other rank does."""
        backend, centre = self.backend, self.weights if self.pages is None else self.total
        with self.lock:
            self.comm.fence()
            if self.pages is not None:
                backend.put(centre, self.weights)
            backend.descend(self.replica, self.scratch, centre, 1.0)
            backend.descend_in_place(centre, self.scratch, -self.moving_rate)
            if self.pages is not None:
                centre.get(out=self.weights)
            self.comm.fence()
        backend.descend_in_place(self.replica, self.scratch, self.moving_rate)

    def gather(self, clock: int) -> None:
        """Copy the centre as it is now."""
        with self.lock:
            self.comm.fence()
            self.shown[:] = self.weights

    def free(self) -> None:
        """Let requests and the lock go."""
        super().free()
        if self.pages is not None:
            self.pages.free()
        self.lock.free()


def most_moving_rate(n_leaves: int) -> float:
    """Return the moving rate from which a centre with so many replicas at a time overshoots for good: a (n + 1) = 2."""
    return 2.0 / (n_leaves + 1)


def distances(squares: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Return of what each rank noted (clock, root mean square distance of the replicas from their mean)."""
    return [(same[0][0], math.sqrt(sum(square for _, square in same) / len(same))) for same in zip(*squares, strict=True)]
