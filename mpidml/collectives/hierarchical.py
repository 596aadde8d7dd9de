"""Sum inside each host in shared memory, between the hosts among their first ranks, and hand the sum out inside again."""

from __future__ import annotations

from typing import Any

from mpidml.collectives.base import FOLDER, Collective, Sum
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.rounds import Array, cut
from mpidml.core.segments import Segments, blocks, sum_up

ARRIVED, SUMMED, BETWEEN, TAKEN = range(4)


class Hierarchical(Collective):
    """Between hosts travels what the algorithm `between` sends for one rank a host, not for each: 1 / (ranks a host) of rabenseifner's bytes.

    On one host nothing travels at all. Buffers from `allocate` are summed where they are, if every rank gives the same part.
    Source: Sanders, Speck and Träff 2009; Cho et al. 2019 (BlueConnect).
    """

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
        if leaders is not None:
            self.outer = self.named if between is None else between
            self.outer.open(leaders)

    def allocate(self, n: int, dtype: Any) -> Array:
        """Return n zeros in this rank's segment of its host's window."""
        return self.segments.allocate(n, dtype)

    def refuse(self, dtype: Any) -> None:
        """UserError on every rank for what the algorithm between hosts, where its first rank alone is asked, cannot take."""
        self.named.refuse(dtype)

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`."""
        self.check(buffer)
        return _HostsSum(self, buffer)

    def free(self) -> None:
        """Free the communicators."""
        if self.outer is not None:
            self.outer.free()
            self.outer.comm.free()
        self.host.free()


class _HostsSum(Sum):
    """Arrive; sum the own slice of all segments into the first one; the first rank sums that between hosts; all take it from there; all have it.

    The last wait keeps the first rank from filling its buffer anew before all have taken the sum.
    """

    def __init__(self, collective: Hierarchical, buffer: Array) -> None:
        host, outer = collective.host, collective.outer
        self.members, self.leaders, self.buffer = collective.members, collective.leaders, buffer
        self.views, in_place = collective.segments.adopt(buffer)
        self.own = None if in_place else self.views[host.rank]
        self.takes = not in_place or host.rank > 0  # the first rank's segment is where the sum comes to lie
        self.counters = collective.segments.counters()
        self.between = outer.plan(self.views[0]) if outer is not None else None
        if self.between is not None:
            self.nbytes, self.n_rounds = self.between.nbytes, self.between.n_rounds
        self.blocks = blocks(self.views, *cut(buffer.size, host.size, host.rank))
        self.n_started, self.phase = 0, TAKEN + 1

    def start(self) -> None:
        """Tell the host that this rank's buffer is complete."""
        if self.phase <= TAKEN:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        if self.own is not None:
            self.own[:] = self.buffer
        self.n_started += 1
        self._reach(ARRIVED)

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
                if self.takes:
                    self.buffer[:] = self.views[0]
                self._reach(TAKEN)
        if self.phase == TAKEN and counters.all_reached(TAKEN, times):
            self.phase = TAKEN + 1
        return self.phase > TAKEN

    def _reach(self, phase: int) -> None:
        self.phase = phase
        self.counters.reach(phase, self.n_started)

    def late(self) -> list[int]:
        """Return the ranks that are behind, those of other hosts by their first ranks."""
        if self.phase == BETWEEN:
            return [self.leaders[rank] for rank in self.between.late()] if self.between is not None else self.members[:1]
        return [self.members[rank] for rank in self.counters.late(self.phase, self.n_started)] if self.phase <= TAKEN else []

    def free(self) -> None:
        """Free the requests between hosts."""
        if self.between is not None:
            self.between.free()
