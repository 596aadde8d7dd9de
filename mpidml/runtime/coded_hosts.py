"""Sum gradients that lie on the devices of several hosts: values inside each host, codes between them, which every rank reads where its gradient lies.

    every rank     gradient | to the first rank of its host                               codes up | read
    first ranks                          sum of the host -> code | sent, added up, sent back | laid into the host's memory

What goes inside a host goes as `summed_there` chooses; nothing but codes leaves it, or comes back to its ranks. What is summed, sent and kept is what
`Hierarchical` sums, sends and keeps in the memory of hosts.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from mpidml.collectives.base import Both, Done, Sum, check_alike, make_collective
from mpidml.collectives.hierarchical import Hierarchical
from mpidml.compression.base import Compressor, make_codec
from mpidml.core.job import Job
from mpidml.core.segments import Counters
from mpidml.runtime.compressed_sum import Compressed, CompressedSum
from mpidml.runtime.summed_there import choose

CAME = 0


class CodedHosts(Hierarchical):
    """Sums of ranges of a gradient that `kernels` compute on, of about `nbytes` each, over all ranks; those of a host give and keep one code together."""

    exact = False

    def __init__(self, job: Job, kernels: Any, nbytes: int) -> None:
        super().__init__()
        self.job, self.kernels, self.nbytes = job, kernels, nbytes

    def open(self, comm: Any, between: Any = None) -> None:
        """Part the ranks by host; `between`, a `Compressed`, is opened on the first ranks."""
        super().open(comm, between)
        self.codes: Compressed = between
        self.codes.compile()
        self.shared = make_collective("shared", self.host)
        on, leads = partial(make_collective, "shared"), self.outer is not None
        self.inside, _, self.gpu_mpi = choose(self.job, self.kernels, self.shared, on, self.nbytes, lands=leads)

    @property
    def way(self) -> str:
        """Say how gradients go."""
        return f"inside hosts {self.inside.way}, between them {Compressed.way}"

    def plan(self, buffer: Any) -> Sum:
        """Prepare the sum of `buffer`, a range of the gradient."""
        check_alike(self.comm, buffer)
        return CodedHostsSum(self, buffer)

    def free(self) -> None:
        """Free what sums inside, and the communicators."""
        self.inside.free()
        self.shared.free()
        super().free()


class CodedHostsSum(Both):
    """The sum of `gradient`: inside, and then that of the first ranks, which the others read."""

    def __init__(self, of: CodedHosts, gradient: Any) -> None:
        self.of, inside = of, of.inside.plan(gradient) if of.host.size > 1 else Done()
        inside.ranks = of.members
        between: Any = None if of.outer is None else of.outer.plan(gradient)
        parts, sizes = of.host.bcast(None if between is None else (between.parts, [code.here.size for code in between.sums]))
        memory, counters = of.host.shared(sum(sizes), "u1"), of.segments.counters()
        laid = [memory[lo:hi] for lo, hi in pairwise(accumulate(sizes, initial=0))]
        super().__init__(inside, Reading(of, gradient, parts, laid, counters) if between is None else Laying(of, between, laid, counters))

    def late(self) -> list[int]:
        """Return the ranks that are behind, those of other hosts by their first ranks."""
        return [self.of.members[rank] for rank in self.first.late()] if self.phase == 0 else self.second.late()

    def waits_for(self) -> str:
        """Say who is waited for; inside it may be the device."""
        return self.first.waits_for() if self.phase == 0 else super().waits_for()


class Laying(Sum):
    """The sum `between` first ranks; its codes are laid into the memory of this one's host, `laid`, and `counters` tell that they are there.

    That is done anew after the next sum inside the host, to which the others give when they have read: nobody waits for them here.
    """

    def __init__(self, of: CodedHosts, between: CompressedSum, laid: list[Any], counters: Counters) -> None:
        self.of, self.between, self.laid, self.counters, self.n_started = of, between, laid, counters, 0
        self.nbytes, self.n_rounds = between.nbytes, between.n_rounds

    def start(self) -> None:
        """Begin between hosts."""
        self.n_started += 1
        self.between.start()

    def test(self) -> bool:
        """Lay the codes down once they are here."""
        if not self.between.test():
            return False
        for laid, code in zip(self.laid, self.between.sums, strict=True):
            laid[:] = code.here
        self.counters.reach(CAME, self.n_started)
        return True

    def late(self) -> list[int]:
        """Return the first ranks of other hosts that are behind."""
        return [self.of.leaders[rank] for rank in self.between.late()]

    def free(self) -> None:
        """Free the requests."""
        self.between.free()


class Reading(Sum):
    """The codes of a sum, those of `parts` of the vector, as the first rank lays them into the memory of this one's host: read into `gradient`."""

    def __init__(self, of: CodedHosts, gradient: Any, parts: list[tuple[int, int]], laid: list[Any], counters: Counters) -> None:
        self.of, self.parts, self.laid, self.counters, self.n_started, codes = of, parts, laid, counters, 0, of.codes
        self.reader = Compressor(make_codec(codes.codec).of_results(), codes.params, codes.dtype, of.kernels, held=(0, 0))
        with of.kernels.naming("codes of gradients"):
            self.codes = [codes.code(each.size) for each in laid]
        first = parts[0][0]
        self.values = [gradient[lo - first : hi - first] for lo, hi in parts]

    def start(self) -> None:
        """Wait for the next codes."""
        self.n_started += 1

    def test(self) -> bool:
        """Read the codes once they are here; kernels that are started from now on find what they say."""
        if not self.counters.has_reached(0, CAME, self.n_started):
            return False
        for laid, code in zip(self.laid, self.codes, strict=True):
            code.here[:] = laid
        self.of.codes.from_host(self.codes)
        for values, code, (lo, hi) in zip(self.values, self.codes, self.parts, strict=True):
            self.reader.decode(code.there, lo, hi, values)
        return True

    def late(self) -> list[int]:
        """Return the first rank of this host."""
        return self.of.members[:1]
