"""Sum buffers that lie on GPUs: inside each host by NCCL, from GPU to GPU; between hosts only the first rank of each, by any other sum of device buffers.

    compute stream | gradient | ready
    NCCL's stream                     reduce to the first rank |                       | broadcast | back
    first rank                                                   sum of the first ranks                      sends what one rank a host sends
    one host                          all-reduce                                                     back

What each wait is for: `ready` (NCCL's stream, for the stream that computes the buffer), the sum of the first ranks (before it is broadcast), `back` (whoever
uses the sum: the host asks it and is never blocked, so that a rank that does not come is found under the limit of every other wait). NCCL wants the same calls
in the same order on all ranks of a host, so a sum begins when those before it have been handed to NCCL whole: sums of other hosts overlap with computing, not with
each other. One communicator and one stream: kernels of two, each waiting for other ranks, can keep each other from the GPU for ever.
Source: NVIDIA, NCCL user guide ("Stream semantics", "Using multiple NCCL communicators concurrently").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from mpidml.collectives.base import Collective, Done, Sum, check_alike
from mpidml.core.errors import UserError
from mpidml.core.job import EXPERIMENTAL, Job
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.device_sum import DeviceSums, DirectSums, StagedSums


def check_between(name: str, collective: Collective, one_host: bool) -> None:
    """Refuse a --collective that was named and cannot be what the first ranks of several hosts sum by."""
    if name == Job.collective:
        return
    if one_host:
        raise UserError(f"--collective {name}: does nothing on one host under --transport nccl, which sums inside each; leave it out")
    if collective.by_timing or not collective.exact or hasattr(collective, "blocks") or name.partition(":")[0] in ("shared", "hierarchical"):
        what = "cannot go between the first ranks of hosts, as --transport nccl needs it"
        raise UserError(f"--collective {name}: {what}; use ring, rabenseifner, recursive_doubling, tree or mpi")


class NcclSums(DeviceSums):
    """Sums over all ranks of `comm`, each with a GPU of its own (Collective on comm); `between(leaders)` makes the sum over the first ranks of several hosts.

    `kernels.gpu.cupy.cuda.nccl` has been loaded (`device.of_job`). UserError on all ranks where NCCL does not start on one.
    """

    def __init__(self, comm: CountedComm, kernels: Any, between: Callable[[CountedComm], StagedSums | DirectSums]) -> None:
        super().__init__(comm, kernels)
        self.nccl = self.cupy.cuda.nccl
        self.host = _joined(comm, self.nccl)
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.leaders = sorted(set(comm.allgather(comm.leader)))
        self.outer: StagedSums | DirectSums | None = None
        if len(self.leaders) > 1 and (leaders := comm.split(0 if comm.rank == comm.leader else -1)) is not None:
            self.outer = between(leaders)
        self.line: deque[NcclSum] = deque()

    @property
    def way(self) -> str:
        """Say how gradients go."""
        return f"NCCL sums gradients inside each host ({EXPERIMENTAL})" + (f", between hosts {self.outer.way}" if self.outer is not None else "")

    def plan(self, buffer: Any) -> Sum:
        """Prepare the sum of `buffer` (Collective on comm)."""
        check_alike(self.comm, buffer)
        return NcclSum(self, buffer)

    def move(self) -> None:
        """Hand NCCL what it can be given without waiting, sum by sum in the order in which they were started."""
        while self.line:
            front = self.line[0]
            if not front.begun:
                front.begin()
            if not front.between.test():
                return
            front.end()
            self.line.popleft()

    def free(self) -> None:
        """Let NCCL and the first ranks' sum go (Collective on comm); no sum may be under way."""
        if self.outer is not None:
            self.outer.free()
            self.outer.inner.free()
            self.outer.comm.free()
        self.host.destroy()


def _joined(comm: CountedComm, nccl: Any) -> Any:
    """Return NCCL's communicator of this rank's host (Collective on comm).

    All ranks enter together, and none goes on before all are in: NCCL's start and its sums would wait for each other. Where it fails on one rank all raise
    the same UserError; a rank that never comes is the wait of those of its host inside NCCL, and has the limit of every other wait.
    """
    made: list[Any] = []

    def started(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except nccl.NcclError as error:
            raise UserError(f"--transport nccl: NCCL does not start on rank {comm.rank} ({error}); see what NCCL_DEBUG=WARN says, or leave it out") from None

    number = comm.host.bcast(agree(comm, lambda: started(nccl.get_unique_id) if comm.host.rank == 0 else None))
    try:
        with comm.host.blocked("the start of NCCL"):
            agree(comm, lambda: made.append(started(lambda: nccl.NcclCommunicator(comm.host.size, number, comm.host.rank))))
    except UserError:
        for communicator in made:
            communicator.abort()  # an orderly end would wait for those that have none
        raise
    return made[0]


class NcclSum(Sum):
    """The sum of one buffer, in place. `nbytes`, `n_rounds`: between hosts; what NCCL moves inside one is not counted."""

    def __init__(self, sums: NcclSums, buffer: Any) -> None:
        self.sums, self.buffer = sums, buffer
        cuda = sums.cupy.cuda
        self.compute = cuda.get_current_stream()
        self.ready, self.back = (cuda.Event(disable_timing=True) for _ in range(2))
        self.between: Sum = Done()
        if sums.outer is not None:
            with sums.stream:  # which computes what is summed between hosts, and goes on with it
                self.between = sums.outer.plan(buffer)
        self.nbytes, self.n_rounds = self.between.nbytes, self.between.n_rounds
        self.what = buffer.size, getattr(sums.nccl, f"NCCL_{buffer.dtype.name.upper()}")
        self.under_way = self.begun = self.ended = False

    def start(self) -> None:
        """Queue the sum behind what the computing stream was given by now."""
        if self.under_way:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        self.under_way, self.begun, self.ended = True, False, False
        self.ready.record(self.compute)
        self.sums.line.append(self)
        self.sums.move()

    def begin(self) -> None:
        """Hand NCCL the sum inside the host; of several hosts it comes to the first rank, which begins the sum with the others'."""
        sums, at = self.sums, self.buffer.data.ptr
        self.begun = True
        sums.stream.wait_event(self.ready)
        if len(sums.leaders) == 1:
            sums.host.allReduce(at, at, *self.what, sums.nccl.NCCL_SUM, sums.stream.ptr)
        else:
            sums.host.reduce(at, at, *self.what, sums.nccl.NCCL_SUM, 0, sums.stream.ptr)
        self.between.start()

    def end(self) -> None:
        """Hand NCCL what takes the sum to the other ranks of the host."""
        sums, at = self.sums, self.buffer.data.ptr
        self.ended = True
        if len(sums.leaders) > 1:
            sums.host.broadcast(at, at, *self.what, 0, sums.stream.ptr)
        self.back.record(sums.stream)

    def test(self) -> bool:
        """Move all sums on; ask the device whether this one is there. NcclError where NCCL has found that another rank is gone."""
        if self.under_way:
            self.sums.move()
            self.sums.host.check_async_error()
            self.under_way = not (self.ended and self.sums.done(self.back))
        return not self.under_way

    def late(self) -> list[int]:
        """Return the ranks that the first rank's sum with other hosts waits for."""
        front = self.sums.line[0] if self.sums.line else None
        return [self.sums.leaders[rank] for rank in front.between.late()] if front is not None and front.begun else []

    def waits_for(self) -> str:
        """Say who is waited for; NCCL does not tell which of them."""
        return super().waits_for() if self.late() else "this rank's device, or the others of its host, in NCCL"

    def free(self) -> None:
        """Free what is between hosts."""
        self.between.free()
