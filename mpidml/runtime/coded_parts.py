"""Sum the gradients of a stage in codes where ranks have parts of it, and save what codes have left of parts as of whole tensors.

    rank 0 of the line    what all have | its parts      codes between its replicas
    rank 1                what all have | its parts      codes between its replicas, of what all have cut alike: so all keep the same bits of it

Residuals are saved by bands of the network's elements, as weights are, so they go on with any parts, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mpidml.compression.base import Compressor, make_codec
from mpidml.core.flat import FlatParams
from mpidml.core.role import Array
from mpidml.nn.stage import Stage
from mpidml.runtime.bands import Bands
from mpidml.runtime.compressed_sum import Compressed


class CodedParts(Compressed):
    """The sums of a stage of which each rank of `line` has parts. What has the shape of a part goes on with the same part alone: all of it but residuals."""

    def __init__(self, codec: str, stage: Stage, backend: Any, seed: int, line: Any) -> None:
        """(Collective on the line.)"""
        super().__init__(codec, stage.params, stage.dtype, backend, seed, stage.net.params, max(line.allgather(stage.n_params)))
        self.places, self.shared = elements = stage.elements()
        self.bands = Bands(None, elements, stage.start, stage.stop, line)

    def _states(self, coder: Compressor) -> Iterator[tuple[str, str, int, Any]]:
        """Yield what a coder keeps: tensor, key, first element, array."""
        for name, array in coder.state().items():
            tensor, _, key = name.rpartition(".")
            yield tensor, key, max(self.params.slices[tensor].start, coder.lo), array

    def _more(self) -> Iterator[tuple[str, bool, Any]]:
        """Yield what is kept besides residuals: name, whether other parts have it, too, array."""
        for coder in (self.up, *self.downs):
            for tensor, key, at, array in self._states(coder):
                if key != "residual":
                    where = (
                        f"compress.{self.comm.rank}.{tensor}.{key}" if coder is self.up else f"compress.sum.{tensor}.{key}.{self.place(tensor, at)}"
                    )
                    shape = self.params.shapes[tensor]
                    part = "" if shape == self.whole_params.shapes[tensor] else f".part.{self.places[at]}.{'x'.join(map(str, shape))}"
                    yield where + part, bool(self.shared[at]), array

    def _tensors(self) -> Iterator[tuple[str, int, slice]]:
        """Yield the tensors in the band: name, the first element of the tensor that is in it, where those are in the band."""
        lo, hi = self.bands.lo, self.bands.hi
        for name, of in self.whole_params.slices.items():
            a, b = max(of.start, lo), min(of.stop, hi)
            if a < b:
                yield name, a - of.start, slice(a - lo, b - lo)

    def kept(self) -> list[tuple[str, int, int, Array]]:
        """List what this rank saves (Collective on the line, and on its replicas)."""
        given, owned = np.zeros(self.params.size, self.dtype), np.zeros(self.params.size, self.dtype)
        for _, key, at, array in self._states(self.up):
            if key == "residual":
                given[at : at + array.size] = self.backend.host(array)
        mine = [(at, self.backend.host(array)) for down in self.downs for _, key, at, array in self._states(down) if key == "residual"]
        for of in self.comm.allgather(mine):
            for at, array in of:
                owned[at : at + array.size] = array
        band, sums = self.bands.to_band(given), self.bands.to_band(owned)
        sizes = {name: of.stop - of.start for name, of in self.whole_params.slices.items()}
        codec, found = make_codec(self.codec), list[tuple[str, int, int, Array]]()
        if codec.has_residual:
            found += [(f"compress.{self.comm.rank}.{name}.residual", first, sizes[name], band[inside]) for name, first, inside in self._tensors()]
        if codec.of_results().has_residual and self.comm.rank == 0 and sums.size:
            found.append(("compress.sum", self.bands.lo, self.whole_params.size, sums))
        more = [(name, array) for name, others, array in self._more() if not others or self.bands.line.rank == 0]
        return found + [(name, 0, array.size, self.backend.host(array).reshape(-1)) for name, array in more]

    def restore(self, read: Callable[[str, int, Array], bool], n_before: int) -> None:
        """Let `read(name, first element, out)` fill what is kept, as `Compressed.restore` (Collective on the line)."""
        n = self.bands.hi - self.bands.lo
        band, sums, other = (np.zeros(n, self.dtype) for _ in range(3))
        same = n_before == self.comm.size
        for rank in [self.comm.rank] if same else range(n_before):
            other.fill(0)
            for name, first, inside in self._tensors():
                read(f"compress.{rank}.{name}.residual", first, other[inside])
            band += other
        read("compress.sum", self.bands.lo, sums)
        given, owned = np.zeros(self.params.size, self.dtype), np.zeros(self.params.size, self.dtype)
        self.bands.from_band(band if same else band / self.comm.size, given)
        self.bands.from_band(sums, owned)
        for coder, values in ((self.up, given), *((down, owned) for down in self.downs)):
            for _, key, at, array in self._states(coder):
                if key == "residual":
                    self.backend.put(array, values[at : at + array.size])
        for name, _, there in self._more() if same else ():
            array = self.backend.host(there)
            read(name, 0, array.reshape(-1))
            self.backend.put(there, array)


def codes_of(strategy: Any, stage: Stage, backend: Any) -> Compressed:
    """Return what sums a stage's gradient in codes: of parts of layers, or of tensors as they are (Collective on the line)."""
    job, net = strategy.job, strategy.net
    if strategy.n_parts > 1:
        return CodedParts(job.compress, stage, backend, job.seed, strategy.line)
    summed = FlatParams([(name, shape) for name, shape in stage.params.shapes.items() if stage.params.slices[name].stop <= stage.n_summed])
    return Compressed(job.compress, summed, net.dtype, backend, job.seed, net.params)
