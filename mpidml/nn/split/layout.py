"""Find a rank's flat weights in the flat weights of the whole network, and put them back: for saving, gathering and loading.

    whole flat   layers.0.weight (n, 6)                layers.0.bias (6,)    layers.1.weight (6, k) ...
    rank's flat  layers.0.weight (n, 2): columns 2, 3  layers.0.bias: 2, 3   layers.1.weight: rows 2, 3 ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core import rng
from mpidml.core.flat import Array, FlatParams
from mpidml.nn.layers.base import Layer
from mpidml.nn.split.part import Index, Part, fill_places, index_of


class Layout:
    """The tensors of a chain and of a rank's parts of it, by the network's names; it holds no values.

    `whole`, `local`: flat layouts; `index[name]`: a tensor's place within the whole one. Layers and parts are those of one `Split`, or the same
    range of both, whose first has number `place` among those with tensors.
    """

    def __init__(self, layers: Sequence[Layer], parts: Sequence[Layer], prefix: str = "layers", place: int = 0) -> None:
        own = [(layer, part) for layer, part in zip(layers, parts, strict=True) if layer.tensors]
        self.parts, self.place, self._prefix = tuple(parts), place, prefix
        self.whole = FlatParams([(f"{prefix}.{i}.{name}", shape) for i, (layer, _) in enumerate(own, place) for name, shape in layer.tensors])
        self.local = FlatParams([(f"{prefix}.{i}.{name}", shape) for i, (_, part) in enumerate(own, place) for name, shape in part.tensors])
        self.index: dict[str, Index] = {f"{prefix}.{i}.{name}": at for i, (_, part) in enumerate(own, place) for name, at in index_of(part).items()}

    @property
    def shared(self) -> list[str]:
        """Return the names of tensors that every rank holds whole and alike; of the others each element is on one rank."""
        own = enumerate((part for part in self.parts if part.tensors), self.place)
        return [f"{self._prefix}.{i}.{name}" for i, part in own for name, _ in part.tensors if not isinstance(part, Part) or name in part.shared]

    def elements(self) -> Array:
        """Return of each element of the rank's flat weights its place in the whole ones, int64 (local.size,)."""
        found = np.empty(self.local.size, np.int64)
        for name, at in self.index.items():
            fill_places(self.whole.slices[name].start, self.whole.shapes[name], at, self.local.view(found, name))
        return found

    def cut(self, whole: Array) -> Array:
        """Return the rank's flat weights (local.size,), a copy, of the whole ones (whole.size,)."""
        local = np.empty(self.local.size, whole.dtype)
        for name, at in self.index.items():
            self.local.view(local, name)[...] = self.whole.view(whole, name)[at]
        return local

    def put(self, local: Array, whole: Array) -> None:
        """Write the rank's flat weights to their places in the whole ones; what every rank holds, every rank writes alike."""
        for name, at in self.index.items():
            self.whole.view(whole, name)[at] = self.local.view(local, name)

    def init(self, seed: int, dtype: DTypeLike, place: int | None = None) -> Array:
        """Return the rank's initial weights, the bits of those of the whole network of this seed, of which one block is held at a time.

        place: the number of the first in the whole network, where its name has another, as in a head.
        """
        flat = np.zeros(self.local.size, dtype)
        own = [(part, tensors) for part, tensors in zip(self.parts, self.views(flat), strict=True) if tensors]
        for i, (part, tensors) in enumerate(own, self.place if place is None else place):
            part.initial(rng.stream(seed, "init", i), tensors)
        return flat

    def views(self, flat: Array) -> list[dict[str, Array]]:
        """Return of each part its tensors by their own names ("weight") as views of the rank's flat array; of one without tensors an empty dict."""
        found, i = [], self.place
        for part in self.parts:
            found.append({name: self.local.view(flat, f"{self._prefix}.{i}.{name}") for name, _ in part.tensors})
            i += bool(part.tensors)
        return found
