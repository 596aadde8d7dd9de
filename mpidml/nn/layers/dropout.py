"""Drop a share of the values in training: out = x / (1 - rate) where kept, else 0 (Srivastava et al., JMLR 2014)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from mpidml_kernels import LAWS
from numpy.typing import DTypeLike

from mpidml.core import rng
from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Layer, Pass, Thunk


class Dropout(Layer):
    """The mask depends on the sample, the pass and the layer's place, not on rank or batch."""

    in_place: ClassVar[bool] = True
    training_only: ClassVar[bool] = True
    random: ClassVar[bool] = True

    def __init__(self, rate: float = 0.5) -> None:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"rate {rate} is not in [0, 1); give one that is")
        self.rate = float(rate)

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count one mask, or two."""
        return LAWS["dropout"].flops(m, self.n_out) + (LAWS["dropout_in_place"].flops(m, self.n_out) if wants_dx else 0)

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return the place of this layer's key in the pass."""
        return (np.zeros(1, np.uint64),)

    def lent(self, kept: tuple[Array, ...], m: int) -> tuple[Array, ...]:
        """Return the key, also where there are no rows."""
        return kept

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls that drop into `out`: the layer before needs its own output to undo its activation."""
        own = backend.here(np.array([rng.key(0, "dropout", self.place)], np.uint64))  # layers of one width must not share a mask
        return [(backend.xor, (a.salt, own, a.kept[0])), (backend.dropout, (a.x, a.ids, a.kept[0], self.rate, a.out))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the call that drops the gradient in place by the same mask."""
        return [Group([(backend.dropout_in_place, (a.d, a.ids, a.kept[0], self.rate))])]
