"""Sleep where a layer would compute: a plug-in layer, named in a net file by the path of this one."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np

from mpidml.nn.layers.base import Group, Layer, Pass, Thunk


class Sleeping(Layer):
    """Hand on what comes after `seconds`, back after as long, and find the gradient of its one weight, nothing, in as long again."""

    ends: ClassVar[bool] = True
    apart: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, seconds: float) -> None:
        self.seconds = float(seconds)

    def connect(self, place: int, n_in: int, n_outputs: int | None) -> int:
        """Return the width before it."""
        super().connect(place, n_in, n_outputs)
        self.tensors = [("weight", (1,))]
        return n_in

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count as many for every layer."""
        return 3 * m

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Sleep, then copy."""
        return [(time.sleep, (self.seconds,)), (np.copyto, (a.out, a.x))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Sleep twice, once for each gradient."""
        back: list[Thunk] = [] if a.dx is None else [(np.copyto, (a.dx, a.d))]
        return [Group([(time.sleep, (self.seconds,)), *back]), Group([(time.sleep, (self.seconds,)), (a.gradients["weight"].fill, (0,))], 0, 1, apart=True)]
