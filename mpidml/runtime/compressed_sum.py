"""Sum a range of a flat vector over ranks in few bytes: each owner is sent codes, adds up what they hold, and sends a code of the sum to all.

    rank 0  | part 0 | part 1 |     encoded for each owner, with what the code leaves kept for the next time
    rank 1  | part 0 | part 1 |
    owner 0 adds up part 0, owner 1 part 1;  encoded once more, with a residual of its own, and decoded by all, the owner too

So all ranks hold the same bits, and both ways what is lost in one step is sent in a later one. 2 (P - 1) / P codes of the range leave each rank.
A vector that lies on a device stays there, with all that is kept: codes are made and read there, and they alone come to the host, where MPI takes them.
Source: Tang et al. 2019 (DoubleSqueeze); Seide et al. 2014 (residuals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from mpidml_kernels import CODES

from mpidml.collectives.base import Collective, Sum
from mpidml.compression.base import Codec, Compressor, make_codec
from mpidml.core.errors import UserError
from mpidml.core.flat import FlatParams
from mpidml.core.grid import ProcessGrid
from mpidml.core.job import Job
from mpidml.core.role import Array

ALIGN = 64


def check_on_grid(job: Job, grid: ProcessGrid) -> None:
    """Refuse codes where no gradients are sent between replicas, and a sum beside them."""
    make_codec(job.compress)
    if grid.sizes["data"] == 1:
        raise UserError(f"--compress {job.compress}: gradients are sent between replicas, and the grid {grid} has one; leave it out, or give data=2")
    if job.collective != Job.collective:
        raise UserError(f"--collective {job.collective}: sums values, --compress {job.compress} sends codes to owners and back; leave one of them out")


class Code(NamedTuple):
    """A code where kernels make and read it, `there`, and where MPI sends it from and to, `here`: on the CPU one array, uint8 (nbytes,)."""

    there: Any
    here: Array


class Step:
    """The number of the step, which noise is drawn by; all sums of a run look at one."""

    number = 0


class Compressed(Collective):
    """Sums of ranges of one flat gradient, in the codes that `codec` describes; `params` says which tensors it is made of, `coders` hold what is kept."""

    exact = False

    def __init__(self, codec: str, params: FlatParams, dtype: Any, backend: Any, seed: int, whole: FlatParams | None = None, longest: int = 0) -> None:
        """Take the codec's text; `whole` has the network's tensors, of which `params` are some. Vectors that begin alike and are at most `longest` are cut alike."""
        self.codec, self.params, self.dtype, self.backend, self.seed = codec, params, np.dtype(dtype), backend, seed
        self.whole_params, self.longest = whole or params, longest
        self.step = Step()
        self.whole = make_codec(codec).whole
        self.downs: list[Compressor] = []

    def open(self, comm: Any) -> None:
        """Make room for what this rank's codes leave, and compile what makes them on a device."""
        super().open(comm)
        self.compile()
        self.up = self._coder(make_codec(self.codec), self.comm.rank)

    def compile(self) -> None:
        """Compile what makes and reads codes on a device."""
        if self.backend.gpu is not None:
            self.backend.load(*CODES)
            self.backend.fetch(self.dtype.str[1:])

    def _coder(self, codec: Codec, sender: int, held: tuple[int, int] | None = None) -> Compressor:
        with self.backend.naming("what codes leave"):
            return Compressor(codec, self.params, self.dtype, self.backend, self.seed, sender, held)

    def look_at(self, gradient: Array) -> Array:
        """Take this rank's gradient, of which ranges are to be summed; return it."""
        self.start = self.backend.address(gradient)
        return gradient

    way = "gradients are encoded there, and codes go"
    """How gradients go that lie on a device, for a run's heading."""

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`, a range of the gradient."""
        lo = (self.backend.address(buffer) - self.start) // self.dtype.itemsize
        edges = self._edges(lo, lo + buffer.size)
        parts = list(pairwise(edges))
        owner = self.comm.size + self.comm.rank  # who draws noise of its own: with that of what it gave itself, roundings would add up
        self.downs.append(self._coder(make_codec(self.codec).of_results(), owner, parts[self.comm.rank]))
        with self.backend.naming("codes of gradients"):
            return CompressedSum(self, buffer, parts, self.downs[-1])

    def code(self, nbytes: int) -> Code:
        """Make room for a code."""
        if self.backend.gpu is None:
            return Code(array := np.zeros(nbytes, np.uint8), array)
        return Code(self.backend.zeros(nbytes, np.uint8), self.backend.gpu.pinned(nbytes, np.uint8))

    def to_host(self, codes: Sequence[Code]) -> None:
        """Let MPI have codes that were made; waits for the device, once."""
        if self.backend.gpu is not None:
            stream = self.backend.gpu.cupy.cuda.get_current_stream()
            for code in codes:
                if code.here.size:
                    code.there.get(stream=stream, out=code.here, blocking=False)
            stream.synchronize()

    def from_host(self, codes: Sequence[Code]) -> None:
        """Let kernels that are started from now on have codes that came. They may come anew after the next `to_host`."""
        for code in codes if self.backend.gpu is not None else ():
            self.backend.put(code.there, code.here)

    def _edges(self, lo: int, hi: int) -> list[int]:
        """Cut a range over the ranks: between tensors where the codec needs them in full."""
        wanted = [lo + max(hi - lo, self.longest) * rank // self.comm.size for rank in range(1, self.comm.size)]
        if self.whole:
            starts = [lo, *(of.start for of in self.params.slices.values() if lo < of.start < hi), hi]
            inner = [min(starts, key=lambda start: abs(start - at)) for at in wanted]
        else:
            inner = [min(hi, lo + (at - lo) // ALIGN * ALIGN) for at in wanted]
        return [lo, *inner, hi]

    def place(self, tensor: str, at: int) -> int:
        """Return where element `at`, of a tensor, is in the network's."""
        return int(self.whole_params.slices[tensor].start + at - self.params.slices[tensor].start)

    def kept(self) -> list[tuple[str, int, int, Array]]:
        """List what this rank keeps: name, first element, elements in all, array of the host. Residuals of sums lie in one vector, wherever they were cut."""
        return [(name, first, size, self.backend.host(array)) for name, first, size, array in self._held()]

    def _held(self) -> list[tuple[str, int, int, Any]]:
        found: list[tuple[str, int, int, Any]] = [(f"compress.{self.comm.rank}.{name}", 0, array.size, array.reshape(-1)) for name, array in self.up.state().items()]
        for down in self.downs:
            for name, array in down.state().items():
                tensor, _, key = name.rpartition(".")
                at = max(self.params.slices[tensor].start, down.lo)
                is_residual = key == "residual"
                place = self.place(tensor, at)
                size, first = (self.whole_params.size, place) if is_residual else (array.size, 0)
                found.append(("compress.sum" if is_residual else f"compress.sum.{name}.{place}", first, size, array.reshape(-1)))
        return found

    def restore(self, read: Callable[[str, int, Array], bool], n_before: int) -> None:
        """Let `read(name, first element, out)` fill what is kept; of another number of ranks all they owed is shared out evenly.

        What was not saved in this shape begins as new, as a direction of `low_rank` of a tensor that was cut: of zeros it would never come away.
        """
        mine = f"compress.{self.comm.rank}."
        for name, first, _, there in self._held():
            array = self.backend.host(there)
            if n_before == self.comm.size or not name.startswith(mine):
                read(name, first, array)
            else:
                others = np.zeros((n_before, array.size), array.dtype)
                known = [read(f"compress.{rank}.{name[len(mine) :]}", first, others[rank]) for rank in range(n_before)]
                if (owed := name.endswith(".residual")) or all(known):
                    array[:] = others.sum(0) / (self.comm.size if owed else n_before)
            self.backend.put(there, array)


class CompressedSum(Sum):
    """The sum of `gradient`, elements `parts[0][0]` to `parts[-1][1]` of a vector of which rank r owns `parts[r]` (Collective on the ranks of `of`).

    What this rank gives is encoded by the coder of all its sums, what it owns by `down`.
    """

    def __init__(self, of: Compressed, gradient: Array, parts: list[tuple[int, int]], down: Compressor) -> None:
        self.of, self.parts, self.up, self.down = of, parts, (up := of.up), down
        self.comm = comm = of.comm
        first, rank = parts[0][0], comm.rank
        self.values = [gradient[lo - first : hi - first] for lo, hi in parts]
        self.own = of.backend.zeros(parts[rank][1] - parts[rank][0], gradient.dtype)
        self.others = others = [r for r in range(comm.size) if r != rank]
        given, taken, sums = ([of.code(coder.nbytes(*cut)) for cut in ranges] for coder, ranges in ((up, parts), (up, [parts[rank]] * comm.size), (down, parts)))
        self.given, self.taken, self.sums = given, taken, sums
        taken[rank] = given[rank]
        tags = comm.new_tag(), comm.new_tag()
        self.receives = [[(comm.Recv_init(code[r].here, r, tag), r) for r in others if code[r].here.size] for code, tag in zip((taken, sums), tags, strict=True)]
        self.sends = [
            [comm.Send_init(given[r].here, r, tags[0]) for r in others if given[r].here.size],
            [comm.Send_init(sums[rank].here, r, tags[1]) for r in others if sums[rank].here.size],
        ]
        self.nbytes = sum(given[r].here.size for r in others) + len(others) * sums[rank].here.size
        self.n_rounds = 2 if others else 0
        self.phase = 2

    def start(self) -> None:
        """Encode, and send."""
        if self.phase < 2:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        for values, code, (lo, hi) in zip(self.values, self.given, self.parts, strict=True):
            self.up.encode(values, lo, hi, code.there, self.of.step.number)
        self.of.to_host([self.given[r] for r in self.others])
        self._post(0)

    def test(self) -> bool:
        """Add up once all codes are here; decode once all sums are."""
        if self.phase == 0 and self._moved():
            (lo, hi), sums = self.parts[self.comm.rank], self.sums[self.comm.rank]
            self.of.from_host([self.taken[r] for r in self.others])
            self.own.fill(0)
            for code in self.taken:  # in the order of ranks
                self.up.decode_add(code.there, lo, hi, self.own)
            self.up.combine(self.own, lo, hi)
            self.down.encode(self.own, lo, hi, sums.there, self.of.step.number)
            self.of.to_host([sums])
            self._post(1)
        if self.phase == 1 and self._moved():
            self.of.from_host([self.sums[r] for r in self.others])
            for values, code, (lo, hi) in zip(self.values, self.sums, self.parts, strict=True):
                self.down.decode(code.there, lo, hi, values)
            self.phase = 2
        return self.phase == 2

    def _post(self, phase: int) -> None:
        self.phase = phase
        for request, _ in self.receives[phase]:
            request.Start()
        for request in self.sends[phase]:
            request.Start()
        self.moving = [(request, rank) for request, rank in self.receives[phase]] + [(request, -1) for request in self.sends[phase]]

    def _moved(self) -> bool:
        self.moving = [(request, rank) for request, rank in self.moving if not request.Test()]
        return not self.moving

    def late(self) -> list[int]:
        """Return the ranks whose codes have not come."""
        return sorted({rank for _, rank in self.moving if rank >= 0}) if self.phase < 2 else []

    def free(self) -> None:
        """Free the requests."""
        for each in (*self.receives[0], *self.receives[1]):
            each[0].Free()
        for request in (*self.sends[0], *self.sends[1]):
            request.Free()
