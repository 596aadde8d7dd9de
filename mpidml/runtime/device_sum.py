"""Sum buffers that lie on a device: through host memory by any collective that sums there, a part at a time, or directly where MPI takes device pointers.

    compute stream   | gradient |                                             | wait back |
    copy stream                  down 0 | down 1 |    up 0 | down 2 | up 1 | up 2            ready, came, back: events
    host                    came 0 -> sum 0    came 1 -> sum 1 |      sum 2                  two page-locked slots: 0 1 0

What each wait is for: `ready` (the copy stream, for the stream that computes the buffer), `came` (the host, before MPI reads a slot), the sum (before the
slot goes up), `back` (the computing stream, before it uses the sums). A slot is filled anew by the stream that has emptied it. The host never blocks: it
asks, under the limits of every other wait for a sum. All sums of one `StagedSums` share its slots, and go on in the order in which they were started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from mpidml.collectives.base import Collective, RoundSum, Sum, check_alike, make_collective
from mpidml.core.rounds import Array
from mpidml.runtime.page_locks import PageLocks

STAGING_NBYTES = 1 << 22
"""Of a slot: long enough for the bandwidth of a bus, short enough that a bucket is several parts, which overlap."""
N_SLOTS = 2
QUEUED, COMING, SUMMING = range(3)


class DeviceSums(Collective):
    """Buffers of the device that `kernels` compute on (`mpidml_kernels.cuda`), summed over the ranks of `comm`.

    When a sum's `test` is true, or its `wait` has ended, the stream that was current when it was planned may use the buffer; the host has to wait for it.
    """

    lands = True
    """Whether this rank needs what is summed in its buffers; else what goes through the host need not come back."""

    def __init__(self, comm: Any, kernels: Any) -> None:
        self.comm, self.kernels, self.cupy = comm, kernels, kernels.gpu.cupy
        self.done: Callable[[Any], bool] = kernels.gpu.done

    def allocate(self, n: int, dtype: Any) -> Any:
        """Return n zeros on the device."""
        return self.kernels.zeros(n, dtype)

    weights = allocate

    @property
    def way(self) -> str:
        """Say how gradients go, for a run's heading."""
        raise NotImplementedError


class StagedSums(DeviceSums):
    """Each buffer goes down in parts of `nbytes`, is summed by `inner`, which is open, in a slot, and comes up again: once each way, whatever the ranks.

    Slots are of the memory that `inner` sums fastest in, page-locked; where the system refuses that, copies make the host wait.
    """

    def __init__(self, inner: Collective, kernels: Any, nbytes: int = STAGING_NBYTES) -> None:
        super().__init__(inner.comm, kernels)
        self.inner, self.nbytes = inner, nbytes
        self.copies = self.cupy.cuda.Stream(non_blocking=True)
        self.slots: dict[str, list[Array]] = {}
        self.locks = PageLocks(self.cupy)
        self.sums: dict[tuple[int, int, str], Sum] = {}
        self.holder: list[_Part | None] = [None] * N_SLOTS
        self.line: deque[_Part] = deque()
        self.n_parts = 0

    @property
    def way(self) -> str:
        """Say how gradients go."""
        slow = f", in memory that the system does not lock ({self.locks.refused}): each copy makes the host wait"
        return "gradients go through the host" + slow * bool(self.locks.refused)

    def plan(self, buffer: Any) -> Sum:
        """Prepare the sum of `buffer` (Collective on comm)."""
        check_alike(self.comm, buffer)
        return StagedSum(self, buffer)

    def take_slot(self, n: int, dtype: Any) -> tuple[int, Array, Sum]:
        """Return a slot, n elements of its memory, and the sum of these, which all parts of that length share (Collective on comm)."""
        slot, name = self.n_parts % N_SLOTS, np.dtype(dtype).str
        self.n_parts += 1
        if name not in self.slots:
            length = self.length(dtype)
            memory = self.inner.allocate(N_SLOTS * length, dtype)
            self.locks.lock(memory)
            self.slots[name] = [memory[i * length : (i + 1) * length] for i in range(N_SLOTS)]
        key = slot, n, name
        if key not in self.sums:
            self.sums[key] = self.inner.plan(self.slots[name][slot][:n])
        return slot, self.slots[name][slot][:n], self.sums[key]

    def length(self, dtype: Any) -> int:
        """Return how many elements a part has at most."""
        return max(1, self.nbytes // int(np.dtype(dtype).itemsize))

    def move(self) -> None:
        """Bring every part as far as it comes without waiting, each step in the order in which the parts were queued."""
        self._fill()
        for part in tuple(self.line):
            if part.phase == QUEUED or (part.phase == COMING and not self.done(part.came)):
                return
            if part.phase == COMING:
                part.sum.start()
                part.phase = SUMMING
            if part.sum.test():
                part.go_up(self.copies)
                self.holder[part.slot] = None
                self.line.remove(part)
                self._fill()

    def _fill(self) -> None:
        """Send down what has its slot free."""
        for part in self.line:
            if part.phase == QUEUED:
                if self.holder[part.slot] is not None:
                    return
                self.holder[part.slot] = part
                part.come_down(self.copies)

    def free(self) -> None:
        """Let the sums in the slots go, and unlock these; `inner` is whoever's opened it (Collective on comm)."""
        for total in self.sums.values():
            total.free()
        self.locks.free()
        self.sums.clear()
        self.slots.clear()


class _Part:
    """Elements [lo, hi) of a buffer, on their way through a slot."""

    def __init__(self, of: StagedSum, lo: int, hi: int) -> None:
        self.of, self.device = of, of.buffer[lo:hi]
        self.slot, self.host, self.sum = of.sums.take_slot(hi - lo, of.buffer.dtype)
        self.came = of.sums.cupy.cuda.Event(disable_timing=True)
        self.phase = QUEUED

    def come_down(self, copies: Any) -> None:
        self.device.get(stream=copies, out=self.host, blocking=False)
        self.came.record(copies)
        self.phase = COMING

    def go_up(self, copies: Any) -> None:
        if self.of.sums.lands:
            self.device.set(self.host, stream=copies)
        self.phase = QUEUED
        self.of.n_left -= 1
        if not self.of.n_left:
            self.of.back.record(copies)


class StagedSum(Sum):
    """The sum of one buffer in its parts: 2 copies a part, 2 x the buffer's bytes over the bus, and no wait that blocks the host."""

    def __init__(self, sums: StagedSums, buffer: Any) -> None:
        self.sums, self.buffer = sums, buffer
        cuda, n, length = sums.cupy.cuda, buffer.size, sums.length(buffer.dtype)
        self.compute = cuda.get_current_stream()
        self.ready, self.back = (cuda.Event(disable_timing=True) for _ in range(2))
        self.parts = [_Part(self, lo, min(n, lo + length)) for lo in range(0, n, length)]
        self.nbytes = sum(part.sum.nbytes for part in self.parts)
        self.n_rounds = sum(part.sum.n_rounds for part in self.parts)
        self.n_left, self.under_way = 0, False

    def start(self) -> None:
        """Queue the parts behind what the computing stream was given by now."""
        if self.under_way:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        self.under_way, self.n_left = True, len(self.parts)
        if not self.parts:
            return
        self.ready.record(self.compute)
        self.sums.copies.wait_event(self.ready)
        self.sums.line.extend(self.parts)
        self.sums.move()

    def test(self) -> bool:
        """Move all sums on; once the last part is on its way up, let the computing stream wait for it."""
        if self.n_left:
            self.sums.move()
        if self.under_way and not self.n_left:
            self.under_way = False
            if self.parts:
                self.compute.wait_event(self.back)
        return not self.under_way

    def late(self) -> list[int]:
        """Return the ranks that the part in front waits for."""
        front = self.sums.line[0] if self.sums.line else None
        return front.sum.late() if front is not None and front.phase == SUMMING else []

    def waits_for(self) -> str:
        """Say who is waited for; it may be the device."""
        front = self.sums.line[0] if self.sums.line else None
        return "this rank's device" if front is not None and front.phase == COMING else super().waits_for()


class DirectSums(DeviceSums):
    """MPI is given device pointers: the rounds of `inner` with what comes added on the device, in a stream of its own; nothing goes over the bus for us."""

    def __init__(self, inner: Collective, kernels: Any) -> None:
        super().__init__(inner.comm, kernels)
        if not in_rounds(inner):
            raise ValueError(f"{type(inner).__name__} is not written down as rounds")
        self.inner = inner
        self.adds = self.cupy.cuda.Stream(non_blocking=True)

    @property
    def way(self) -> str:
        """Say how gradients go."""
        return "MPI is given the gradients there"

    def plan(self, buffer: Any) -> Sum:
        """Prepare the sum of `buffer` (Collective on comm)."""
        check_alike(self.comm, buffer)
        part = self.inner.rounds(self.comm.rank, self.comm.size, buffer.size)
        return DirectSum(self, buffer, (*part.reduce, *part.gather))


class DirectSum(RoundSum):
    """The rounds of one buffer: MPI reads it once `ready` has come and, from the second round on, once what the round before has added is there.

    `largest`: of each element the larger is taken, in place of the sum.
    """

    def __init__(self, sums: DirectSums, buffer: Any, rounds: Any, largest: bool = False) -> None:
        cuda = sums.cupy.cuda
        self.sums, self.compute, self.largest = sums, cuda.get_current_stream(), largest
        self.ready, self.added = (cuda.Event(disable_timing=True) for _ in range(2))
        self.begins = False
        super().__init__(sums.comm, rounds, buffer, self._join, sums.kernels.zeros, self._is_added, self._scale)

    def _join(self, target: Any, source: Any, out: Any) -> None:
        if self.largest:
            self._launch(self.sums.kernels.maximum, target, source, out)
        else:
            self._launch(self.sums.kernels.add, target, source)

    def _scale(self, array: Any, factor: float) -> None:
        self._launch(self.sums.kernels.scale, array, factor)

    def _launch(self, kernel: Callable[..., None], *given: Any) -> None:
        """Launch behind what else came: terms are scaled before they are added, in the stream that adds."""
        with self.sums.adds:
            kernel(*given)
        self.added.record(self.sums.adds)

    def _is_added(self) -> bool:
        return self.sums.done(self.added)

    def start(self) -> None:
        """Begin once the computing stream has done what it was given by now."""
        if self.begins or self.at < self.n_rounds:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        self.ready.record(self.compute)
        self.begins = True

    def test(self) -> bool:
        """Take what has come, once the buffer is complete."""
        if self.begins:
            if not self.sums.done(self.ready):
                return False
            self.begins = False
            super().start()
        return super().test()

    def waits_for(self) -> str:
        """Say who is waited for; it may be the device."""
        return "this rank's device" if self.begins else super().waits_for()


def in_rounds(collective: Collective) -> bool:
    """Tell whether a collective is written down as rounds, which MPI can carry out between devices."""
    return type(collective).rounds is not Collective.rounds


def make_sums(collective: Collective, kernels: Any, nbytes: int, takes_pointers: bool, chooses: bool) -> StagedSums | DirectSums:
    """Return what sums buffers of about `nbytes` by an open collective (Collective on its ranks): directly where MPI takes device pointers, else through the host.

    What is no rounds sums on the host all the same, unless nobody named it: `chooses`.
    """
    inner = collective.pick(nbytes)
    if takes_pointers and chooses and not in_rounds(inner):
        inner = make_collective("rabenseifner", collective.comm)
    return (DirectSums if takes_pointers and in_rounds(inner) else StagedSums)(inner, kernels)
