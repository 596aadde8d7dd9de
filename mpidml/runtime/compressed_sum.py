"""Sum a range of a flat vector over ranks in few bytes: each owner is sent codes, adds up what they hold, and sends a code of the sum to all.

    rank 0  | part 0 | part 1 |     encoded for each owner, with what the code leaves kept for the next time
    rank 1  | part 0 | part 1 |
    owner 0 adds up part 0, owner 1 part 1;  encoded once more, with a residual of its own, and decoded by all, the owner too

So all ranks hold the same bits, and both ways what is lost in one step is sent in a later one. 2 (P - 1) / P codes of the range leave each rank.
Source: Tang et al. 2019 (DoubleSqueeze); Seide et al. 2014 (residuals).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from mpidml.collectives.base import Collective, Sum
from mpidml.compression.base import Compressor, make_codec
from mpidml.core.errors import UserError
from mpidml.core.flat import FlatParams
from mpidml.core.grid import ProcessGrid
from mpidml.core.job import Job
from mpidml.core.role import Array

ALIGN = 64


def check_on_grid(job: Job, grid: ProcessGrid) -> None:
    """Refuse codes where no gradients of whole tensors are sent between replicas, and a sum beside them."""
    make_codec(job.compress)
    if grid.sizes["data"] == 1:
        raise UserError(f"--compress {job.compress}: gradients are sent between replicas, and the grid {grid} has one; leave it out, or give data=2")
    if grid.sizes["tensor"] > 1:
        raise UserError(f"--compress {job.compress}: codes are of whole tensors, and tensor={grid.sizes['tensor']} cuts them; leave one of them out")
    if job.collective != Job.collective:
        raise UserError(f"--collective {job.collective}: sums values, --compress {job.compress} sends codes to owners and back; leave one of them out")


class Step:
    """The number of the step, which noise is drawn by; all sums of a run look at one."""

    number = 0


class Compressed(Collective):
    """Sums of ranges of one flat gradient, in the codes that `codec` describes; `params` says which tensors it is made of, `coders` hold what is kept."""

    exact = False

    def __init__(self, codec: str, params: FlatParams, dtype: Any, backend: Any, seed: int, start: int = 0, size: int = 0) -> None:
        """Take the codec's text; `params` begin at element `start` of the network's, of which there are `size`, where they are not all."""
        self.codec, self.params, self.dtype, self.backend, self.seed = codec, params, np.dtype(dtype), backend, seed
        self.start_of, self.size = start, size or params.size
        self.step = Step()
        self.whole = make_codec(codec).whole
        self.downs: list[Compressor] = []

    def open(self, comm: Any) -> None:
        """Make room for what this rank's codes leave."""
        super().open(comm)
        self.up = self._coder(None)

    def _coder(self, held: tuple[int, int] | None) -> Compressor:
        return Compressor(make_codec(self.codec), self.params, self.dtype, self.backend, self.seed, self.comm.rank, held)

    def look_at(self, gradient: Array) -> Array:
        """Take this rank's gradient, of which ranges are to be summed; return it."""
        self.start = gradient.__array_interface__["data"][0]
        return gradient

    def plan(self, buffer: Array) -> Sum:
        """Prepare the sum of `buffer`, a range of the gradient."""
        lo = (buffer.__array_interface__["data"][0] - self.start) // self.dtype.itemsize
        edges = self._edges(lo, lo + buffer.size)
        parts = list(pairwise(edges))
        self.downs.append(self._coder(parts[self.comm.rank]))
        return CompressedSum(self.comm, buffer, parts, self.up, self.downs[-1], self.step)

    def _edges(self, lo: int, hi: int) -> list[int]:
        """Cut a range over the ranks: between tensors where the codec needs them in full."""
        wanted = [lo + (hi - lo) * rank // self.comm.size for rank in range(1, self.comm.size)]
        if self.whole:
            starts = [lo, *(of.start for of in self.params.slices.values() if lo < of.start < hi), hi]
            inner = [min(starts, key=lambda start: abs(start - at)) for at in wanted]
        else:
            inner = [lo + (at - lo) // ALIGN * ALIGN for at in wanted]
        return [lo, *inner, hi]

    def kept(self) -> list[tuple[str, int, int, Array]]:
        """List what this rank keeps: name, first element, elements in all, array. Residuals of sums lie in one vector, wherever they were cut."""
        found = [(f"compress.{self.comm.rank}.{name}", 0, array.size, array.reshape(-1)) for name, array in self.up.state().items()]
        for down in self.downs:
            for name, array in down.state().items():
                tensor, _, key = name.rpartition(".")
                at = max(self.params.slices[tensor].start, down.lo)
                is_residual = key == "residual"
                size, first = (self.size, self.start_of + at) if is_residual else (array.size, 0)
                found.append(("compress.sum" if is_residual else f"compress.sum.{name}.{self.start_of + at}", first, size, array.reshape(-1)))
        return found

    def restore(self, read: Callable[[str, int, Array], bool], n_before: int) -> None:
        """Let `read(name, first element, out)` fill what is kept; of another number of ranks all they owed is shared out evenly."""
        mine = f"compress.{self.comm.rank}."
        for name, first, _, array in self.kept():
            if n_before == self.comm.size or not name.startswith(mine):
                read(name, first, array)
                continue
            others = np.zeros((n_before, array.size), array.dtype)
            for rank in range(n_before):
                read(f"compress.{rank}.{name[len(mine) :]}", first, others[rank])
            array[:] = others.sum(0) / (self.comm.size if name.endswith(".residual") else n_before)


class CompressedSum(Sum):
    """The sum of `gradient`, elements `parts[0][0]` to `parts[-1][1]` of a vector of which rank r owns `parts[r]` (Collective on comm).

    `up` encodes what this rank gives, `down` what it owns.
    """

    def __init__(self, comm: Any, gradient: Array, parts: list[tuple[int, int]], up: Compressor, down: Compressor, step: Step) -> None:
        self.comm, self.parts, self.up, self.down, self.step = comm, parts, up, down, step
        first, rank = parts[0][0], comm.rank
        self.values = [gradient[lo - first : hi - first] for lo, hi in parts]
        self.own = np.zeros(parts[rank][1] - parts[rank][0], gradient.dtype)
        others = [r for r in range(comm.size) if r != rank]
        given, taken, sums = ([np.zeros(coder.nbytes(*of), np.uint8) for of in ranges] for coder, ranges in ((up, parts), (up, [parts[rank]] * comm.size), (down, parts)))
        self.given, self.taken, self.sums = given, taken, sums
        taken[rank] = given[rank]
        tags = comm.new_tag(), comm.new_tag()
        self.receives = [[(comm.Recv_init(code[r], r, tag), r) for r in others if code[r].size] for code, tag in zip((taken, sums), tags, strict=True)]
        self.sends = [
            [comm.Send_init(given[r], r, tags[0]) for r in others if given[r].size],
            [comm.Send_init(sums[rank], r, tags[1]) for r in others if sums[rank].size],
        ]
        self.nbytes = sum(given[r].size for r in others) + len(others) * sums[rank].size
        self.n_rounds = 2 if others else 0
        self.phase = 2

    def start(self) -> None:
        """Encode, and send."""
        if self.phase < 2:
            raise RuntimeError("sum over ranks: it is started again before it has ended")
        for values, code, (lo, hi) in zip(self.values, self.given, self.parts, strict=True):
            self.up.encode(values, lo, hi, code, self.step.number)
        self._post(0)

    def test(self) -> bool:
        """Add up once all codes are here; decode once all sums are."""
        if self.phase == 0 and self._moved():
            lo, hi = self.parts[self.comm.rank]
            self.own.fill(0)
            for code in self.taken:  # in the order of ranks
                self.up.decode_add(code, lo, hi, self.own)
            self.up.combine(self.own, lo, hi)
            self.down.encode(self.own, lo, hi, self.sums[self.comm.rank], self.step.number)
            self._post(1)
        if self.phase == 1 and self._moved():
            for values, code, (lo, hi) in zip(self.values, self.sums, self.parts, strict=True):
                self.down.decode(code, lo, hi, values)
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
