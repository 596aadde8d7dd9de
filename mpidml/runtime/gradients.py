"""Sum a program's own gradients over the ranks, also where some have fewer batches than others.

    with mpidml.Gradients({"w": (784, 10), "b": (10,)}) as total:
        for batch in total.over(my_batches):              # as many rounds on every rank; None where this rank has no batch left
            if batch is not None:
                total["w"][:] = ...                        # gradient of the SUM of the losses of the samples in the batch
                total.ready("w")                           # its sum over the ranks may begin; optional
                ...
            n = total.reduce(0 if batch is None else len(batch))
            w -= rate * total["w"]                         # by now the mean over the n samples of all ranks

Inside `over` tensors that nobody has touched are zero, and ranks that have no batch left go on with zeros until all have ended. Without `over`, every rank calls
`reduce` equally often, and a round begins with the mean of the one before in all tensors: fill all of them, or call `ready` for those that are filled.
Source: Li et al. 2020 (join of uneven inputs, unused parameters).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np

from mpidml.collectives.base import Sum, make_collective
from mpidml.core.errors import UserError, WaitTimeout, nearest
from mpidml.core.flat import FlatParams
from mpidml.core.partition import merge_parts
from mpidml.core.role import Array
from mpidml.runtime import abort
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm, world

BUCKET_NBYTES = 1 << 20
ACTIVE, SAMPLES, MISSING, LEAVES, READY = range(5)
Batch = TypeVar("Batch")


class Gradients:
    """Named tensors of `shapes`, in one flat buffer that is summed over the ranks of `comm` (default: all) in buckets (Collective on comm).

    `collective`: how, as --collective. `unused`: what becomes of a tensor that a rank never called `ready` for: "zero", whatever lies there, once it has called that
    for any, or "error" for a UserError on all ranks that names it, once any rank has called that, but on a rank without samples that has not. Without `comm`, a rank
    that raises ends the others; a rank that leaves its rounds by `sys.exit` ends them, too, 15 s later, and one that leaves `over` alone, by `break`, when it comes to
    the end of `with`. `wait_limit`: of each wait, in seconds.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: Any = "float32", collective: str = "auto", unused: str = "zero", comm: Any = None, wait_limit: float = 300.0
    ) -> None:
        if comm is not None and not hasattr(comm, "Get_size") and not isinstance(comm, CountedComm):
            raise UserError(f"gradients: comm = {comm!r} is no communicator; give one of mpi4py, or leave it out")
        if comm is None and world().size > 1:
            abort.install(world())
        self.comm = comm if isinstance(comm, CountedComm) else CountedComm(world() if comm is None else comm)
        self.owns_comm = self.comm is not comm
        self.wait_limit, self.unused = wait_limit, unused
        self.params = agree(self.comm, lambda: _layout(shapes, dtype, collective, unused, wait_limit))
        _check_alike(self.comm.allgather((list(self.params.shapes.items()), f"{np.dtype(dtype)} by {collective}", unused)))
        self.collective = make_collective(collective, self.comm)
        if not self.collective.exact:
            raise UserError(f"gradients: {collective} does not sum over all ranks; use auto, ring, rabenseifner, tree, shared, hierarchical or mpi")
        self.limited = abort.limit_waits(wait_limit)
        self.flat = self.collective.allocate(self.params.size, dtype)
        self.views = self.params.views(self.flat)
        self.counts = self.collective.allocate(5, np.float64)
        self.count_sum = self.collective.plan(self.counts)
        # From the last tensor to the first, as a backward pass makes them final.
        self.names = list(reversed(self.params.slices))
        parts = [(s.start, s.stop) for s in (self.params.slices[name] for name in self.names)]
        self.cuts = merge_parts(parts, max(1, BUCKET_NBYTES // self.flat.itemsize))
        self.sums = [self.collective.plan(self.flat[lo:hi]) for lo, hi in self.cuts]
        for total in (*self.sums, self.count_sum):
            total.ranks = self.comm.ranks
        self.is_ready: set[str] = set()
        self.n_begun, self.owes, self.in_rounds, self.closed = 0, False, False, False

    def __getitem__(self, name: str) -> Array:
        """Return a tensor: to be filled, and after `reduce` the mean gradient."""
        self._open()
        if name not in self.views:
            raise UserError(f"gradients: there is no tensor '{name}'; {nearest(name, self.views)}")
        return self.views[name]

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch | None]:
        """Yield this rank's batches, then None as long as others have any. All tensors are zero at the begin of a round."""
        if not isinstance(batches, Iterable):
            raise UserError(f"gradients: over({batches!r}): are no batches; give a list of them, or anything else that `for` takes")
        own = iter(batches)
        while True:
            self._open()
            if self.owes:
                raise UserError("gradients: a round ended without reduce(); call it in each, with 0 samples where the batch is None")
            batch = next(own, None)
            self._count(batch is not None)
            self._all_go_on()
            self.in_rounds = self.owes = bool(self.counts[ACTIVE])
            if not self.in_rounds:
                return
            self.flat[:] = 0
            yield batch

    def ready(self, name: str) -> None:
        """Say that a tensor is final: what lies behind it in the buffer may be summed. In any order, once a round.

        In a round in which a rank has called this, a tensor for which it has not counts as zeros of this rank.
        """
        self[name]
        if name in self.is_ready:
            raise UserError(f"gradients: ready('{name}') for the second time in one round; call it once, when the tensor is final, and reduce() before the next")
        self.is_ready.add(name)
        while self.n_begun < len(self.cuts) and self._all_ready(*self.cuts[self.n_begun]):
            self._begin()
        for total in self.sums[: self.n_begun]:
            total.test()

    def reduce(self, n_samples: int) -> int:
        """Sum over all ranks, divide by the number of samples of all, and return that number."""
        self._open()
        if not isinstance(n_samples, int | np.integer) or n_samples < 0:
            raise UserError(f"gradients: reduce({n_samples!r}): is no number of samples; give how many this rank's gradient is of, a whole number from 0 up")
        unused = [name for name in self.names if name not in self.is_ready]
        for name in unused if self.is_ready else ():  # no sum of it has begun; what lies there is the last mean, or was never said to be final
            self.views[name][...] = 0
        missing = unused if self.unused == "error" and (self.is_ready or n_samples) else []
        self._sum_up(n_samples, len(missing))
        self._all_go_on()
        self.n_begun, self.owes = 0, False
        self.is_ready.clear()
        if self.counts[MISSING] and self.counts[READY]:  # where no rank says what is ready, nothing is unused
            every = self.comm.allgather(missing)
            names = next(filter(None, every))
            ranks = ", ".join(str(rank) for rank, of in enumerate(every) if of == names)
            raise UserError(
                f"gradients: rank {ranks} has no gradient of {', '.join(repr(name) for name in names[:3])}; call ready() for it, or take unused='zero'"
            )
        n = int(self.counts[SAMPLES])
        if n:
            self.flat /= self.flat.dtype.type(n)
        return n

    def _open(self) -> None:
        if self.closed:
            raise UserError("gradients: they are closed; copy what is to stay before the end of `with`")

    def _all_ready(self, lo: int, hi: int) -> bool:
        return all(name in self.is_ready for name, s in self.params.slices.items() if s.start < hi and s.stop > lo)

    def _begin(self) -> None:
        self.sums[self.n_begun].start()
        self.n_begun += 1

    def _sum_up(self, n_samples: int = 0, n_missing: int = 0, leaves: bool = False) -> None:
        while self.n_begun < len(self.cuts):
            self._begin()
        self._count(False, n_samples, n_missing, leaves)
        for total in self.sums:
            self._wait(total)

    def _count(self, active: bool = False, n_samples: int = 0, n_missing: int = 0, leaves: bool = False) -> None:
        self.counts[:] = active, n_samples, n_missing, leaves, bool(self.is_ready)
        self.count_sum.start()
        self._wait(self.count_sum)

    def _wait(self, total: Sum) -> None:
        """Wait for a sum; who waits too long is told of this class's argument, there is no command line."""
        try:
            total.wait(self.wait_limit)
        except WaitTimeout as error:
            raise WaitTimeout(str(error).replace("--wait-limit", "wait_limit")) from None

    def _all_go_on(self, leaves: bool = False) -> None:
        """Refuse that some ranks have left the rounds in which others go on."""
        if 0 < self.counts[LEAVES] < self.comm.size:
            gone = [str(self.comm.ranks[rank]) for rank, left in enumerate(self.comm.allgather(leaves)) if left]
            raise UserError(f"gradients: rank {', '.join(gone)} has left its rounds, and others go on; let all leave in one round, or give None until they have ended")

    def close(self) -> None:
        """Free requests and communicators (Collective on comm). Arrays that were taken from here are gone with them: copy what is to stay.

        UserError on all ranks where some have left `over` and others go on.
        """
        if self.closed:
            return
        self.closed, self.views = True, {}
        self.limited.close()
        if self.in_rounds:  # meet those that go on where they wait: at the end of this round, or at the begin of the next
            if self.owes:
                self._sum_up(leaves=True)
            else:
                self._count(leaves=True)
            self._all_go_on(leaves=True)
        for total in (*self.sums, self.count_sum):
            total.free()
        self.collective.free()
        if self.owns_comm:
            self.comm.free()

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.limited.close()
        if kind is None:
            self.close()


def _check_alike(given: Sequence[tuple[list[tuple[str, tuple[int, ...]]], str, str]]) -> None:
    """Raise UserError, the same on all ranks, where a rank's tensors, way to sum or `unused` are not those of rank 0."""
    first, how, unused = given[0]
    for rank, (other, otherwise, unlike) in enumerate(given):
        if other != first:
            at, pair = next((at, pair) for at, pair in enumerate(zip_longest(first, other)) if pair[0] != pair[1])
            here, there = (f"'{tensor[0]}' {tensor[1]}" if tensor else "none" for tensor in pair)
            raise UserError(f"gradients: tensor {at} is {here} on rank 0, {there} on rank {rank}; name the same, in one order, on every rank")
        if otherwise != how:
            raise UserError(f"gradients: rank 0 sums {how}, rank {rank} sums {otherwise}; give the same on every rank")
        if unlike != unused:
            raise UserError(f"gradients: unused = {unused!r} on rank 0, {unlike!r} on rank {rank}; give the same on every rank")


def _layout(shapes: Mapping[str, tuple[int, ...]], dtype: Any, collective: str, unused: str, wait_limit: float) -> FlatParams:
    """Return where the tensors lie; UserError names the first argument that cannot be."""
    if not isinstance(shapes, Mapping) or not shapes:
        raise UserError(f"gradients: shapes = {shapes!r}: no tensor is named; give names and shapes, as {{'w': (784, 10)}}")
    for name, shape in shapes.items():
        if not isinstance(name, str):
            raise UserError(f"gradients: a tensor is named {name!r}; give text, as 'w'")
        if not isinstance(shape, tuple | list) or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 0 for n in shape):
            raise UserError(f"gradients: the shape of '{name}' is {shape!r}; give a tuple of whole numbers from 0 up, as (784, 10)")
    try:
        known = dtype is not None and np.dtype(dtype) in (np.float32, np.float64)
    except TypeError:
        known = False
    if not known:
        raise UserError(f"gradients: {dtype!r} is no type to take a mean in; give float32 or float64")
    if not isinstance(collective, str):
        raise UserError(f"gradients: collective = {collective!r} is no text; give for example 'ring'")
    if unused not in ("zero", "error"):
        raise UserError(f"gradients: unused = {unused!r} is neither 'zero' nor 'error'; give one of them")
    if isinstance(wait_limit, bool) or not isinstance(wait_limit, int | float) or not 0 < wait_limit < float("inf"):
        raise UserError(f"gradients: wait_limit = {wait_limit!r} is no positive number of seconds; give for example 300")
    return FlatParams([(name, tuple(map(int, shape))) for name, shape in shapes.items()])
