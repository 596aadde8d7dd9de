"""Sum inside each host in shared memory, between the hosts among their first ranks, and hand the sum out inside again; or leave each rank its part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mpidml.collectives.base import FOLDER, Collective, Halves, Sum
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.rounds import Array, cut
from mpidml.core.segments import Segments, blocks, sum_up

ARRIVED, SUMMED, BETWEEN, TAKEN = range(4)


class Hierarchical(Collective):
    """Between hosts travels what the algorithm `between` sends for one rank a host, not for each: 1 / (ranks a host) of rabenseifner's bytes.

    On one host nothing travels at all. Buffers from `allocate` are summed where they are, if every rank gives the same part.
    In halves a host owns the part that its first rank has after the first half of `between`, its ranks a part of that each. Where `between` leaves the
    whole sum on all hosts (recursive_doubling, mpi), each rank has it.
    Source: Sanders, Speck and Träff 2009; Cho et al. 2019 (BlueConnect).
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, between: str = "rabenseifner") -> None:
        if str(between).partition(":")[0] in ("hierarchical", "shared", "auto", "gossip"):
            raise UserError(f"hierarchical: '{between}' cannot go between hosts; use ring, rabenseifner, recursive_doubling, tree or mpi")
        self.between = between
        self.named: Collective = plugins.make(FOLDER, str(between))  # by every rank, so that a wrong name is refused by all

    def open(self, comm: Any, between: Collective | None = None) -> None:
        """Part the ranks by host; `between` is opened on the first ranks in place of the named algorithm."""
        super().open(comm)
        self.host = comm.split(comm.leader)
        leaders = comm.split(0 if comm.rank == comm.leader else -1)
        self.segments = Segments(self.host)
        everyone = comm.allgather((comm.leader, comm.rank))
        self.members = [rank for leader, rank in everyone if leader == comm.leader]
        self.leaders = sorted({leader for leader, _ in everyone})
        self.outer: Collective | None = None
        self.n_hosts = n = len(self.leaders)
        self.parts = between is None and self._cuts(n)
        if leaders is not None:
            self.outer = self.named if between is None else between
            self.outer.open(leaders)

    def _cuts(self, n_hosts: int) -> bool:
        """Tell whether each host has a part of the sum after the first half of what goes between them."""
        return n_hosts == 1 or (type(self.named).rounds is not Collective.rounds and bool(self.named.rounds(0, n_hosts, n_hosts).gather))

    def largest(self, hosts: Sequence[int]) -> float:
        """Return the share of the fullest rank, which may be one of a small host."""
        if not self._cuts(len(hosts)):
            return 1.0
        if len(hosts) == 1:
            return 1 / hosts[0]
        n = len(hosts) << (len(hosts).bit_length() + 6)  # whatever it is cut into
        parts = [self.named.rounds(h, len(hosts), n) for h in range(len(hosts))]
        return max((of.hi - of.lo) / n / size for of, size in zip(parts, hosts, strict=True))

    def allocate(self, n: int, dtype: Any) -> Array:
        """Return n zeros in this rank's segment of its host's window."""
        return self.segments.allocate(n, dtype)

    def refuse(self, dtype: Any) -> None:
        """UserError on every rank for what the algorithm between hosts, where its first rank alone is asked, cannot take."""
        self.named.refuse(dtype)

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`."""
        self.check(buffer)
        total = _HostsSum(self, buffer)
        return total if self.outer is None else total.by(self.outer.plan(total.views[0]))

    def weights(self, n: int, dtype: Any) -> Array:
        """Return n zeros, one array for all ranks of a host where each owns a part."""
        whole: Array = self.comm.shared(n, dtype) if self.parts else super().weights(n, dtype)
        return whole

    def halves(self, gradient: Array, weights: Array) -> Halves:
        """Each rank changes its part of what its host owns, in the weights that all of the host read; then the first ranks bring the hosts' parts together."""
        if not self.parts:
            return super().halves(gradient, weights)
        self.check(gradient)
        reduce, gather = _HostsSum(self, gradient, spreads=False), _HostsSum(self)
        if self.outer is not None:
            between = self.outer.halves(reduce.views[0], weights)
            reduce.by(between.reduce)
            gather.by(between.gather)
        lo, hi = 0, gradient.size
        if self.n_hosts > 1:
            of_host = self.named.rounds(self.leaders.index(self.comm.leader), self.n_hosts, gradient.size)
            lo, hi = of_host.lo, of_host.hi
        first, end = (lo + edge for edge in cut(hi - lo, self.host.size, self.host.rank))
        return Halves(reduce, gather, first, end, reduce.views[0][first:end], self.comm.size > 1)

    def free(self) -> None:
        """Free the communicators."""
        if self.outer is not None:
            self.outer.free()
            self.outer.comm.free()
        self.host.free()


class _HostsSum(Sum):
    """Arrive; sum the own slice of all segments into the first one; the first rank sums that `between` hosts; where it `spreads` all take it from there; all have it.

    That last wait keeps the first rank from filling its buffer anew before all have taken the sum. Without a buffer nothing is summed inside: what is `between` begins
    once all have arrived, and all wait for its end.
    """

    def __init__(self, of: Hierarchical, buffer: Array | None = None, spreads: bool = True) -> None:
        self.members, self.leaders, self.buffer = of.members, of.leaders, buffer
        self.views, in_place = ([], True) if buffer is None else of.segments.adopt(buffer)
        self.own = None if in_place else self.views[of.host.rank]
        self.spreads = spreads and buffer is not None
        self.takes = self.spreads and (not in_place or of.host.rank > 0)  # the first rank's segment is where the sum comes to lie
        self.counters = of.segments.counters()
        self.between: Sum | None = None
        self.blocks = [] if buffer is None else blocks(self.views, *cut(buffer.size, of.host.size, of.host.rank))
        self.arrives_at = SUMMED if buffer is None else ARRIVED
        self.n_started, self.phase = 0, TAKEN + 1

    def by(self, between: Sum) -> _HostsSum:
        """Let this rank, the first of its host, take part `between` hosts; return this."""
        self.between, self.nbytes, self.n_rounds = between, between.nbytes, between.n_rounds
        return self

    def start(self) -> None:
        """Tell the host that this rank's buffer is complete."""
        if self.phase <= TAKEN:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        if self.own is not None:
            self.own[:] = self.buffer
        self.n_started += 1
        self._reach(self.arrives_at)

    def test(self) -> bool:
        """Go through the phases as far as possible."""
        counters, times = self.counters, self.n_started
        if self.phase == ARRIVED and counters.all_reached(ARRIVED, times):
            sum_up(self.blocks, spreads=False)
            self._reach(SUMMED)
        if self.phase == SUMMED and (self.between is None or counters.all_reached(SUMMED, times)):
            if self.between is not None:
                self.between.start()
            self.phase = BETWEEN
        if self.phase == BETWEEN:
            if self.between is not None and self.between.test():
                self._reach(BETWEEN)
            if counters.has_reached(0, BETWEEN, times):
                if self.takes and self.buffer is not None:
                    self.buffer[:] = self.views[0]
                self._reach(TAKEN)
        if self.phase == TAKEN and (not self.spreads or counters.all_reached(TAKEN, times)):
            self.phase = TAKEN + 1
        return self.phase > TAKEN

    def _reach(self, phase: int) -> None:
        self.phase = phase
        self.counters.reach(phase, self.n_started)

    def go_on(self) -> None:
        """Call MPI, which a look into memory does not."""
        self.counters.go_on()

    def late(self) -> list[int]:
        """Return the ranks that are behind, those of other hosts by their first ranks."""
        if self.phase == BETWEEN:
            return [self.leaders[rank] for rank in self.between.late()] if self.between is not None else self.members[:1]
        return [self.members[rank] for rank in self.counters.late(self.phase, self.n_started)] if self.phase <= TAKEN else []

    def free(self) -> None:
        """Free the requests between hosts."""
        if self.between is not None:
            self.between.free()
