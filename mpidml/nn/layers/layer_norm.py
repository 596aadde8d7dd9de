"""Bring each row to mean 0 and variance 1, then scale and shift each value (Ba, Kiros, Hinton, 2016)."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from mpidml_kernels import LAWS, norm
from numpy.typing import DTypeLike

from mpidml.core.flat import Array
from mpidml.nn.layers.base import Group, Layer, Pass, Thunk


class LayerNorm(Layer):
    """out = gain (x - mean) / sqrt(variance + eps) + bias; gain and bias: (n,)."""

    in_place: ClassVar[bool] = True
    families: ClassVar[tuple[ModuleType, ...]] = (norm,)

    def __init__(self, eps: float = 1e-5) -> None:
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
            raise ValueError(f"eps = {eps!r} is not a positive number; give one such as 1e-5")
        self.eps = float(eps)

    def connect(self, place: int, n_in: int, n_outputs: int | None) -> int:
        """Return n_in."""
        super().connect(place, n_in, n_outputs)
        self.tensors = [("gain", (n_in,)), ("bias", (n_in,))]
        return n_in

    def initial(self, random: np.random.Generator, parameters: dict[str, Array]) -> None:
        """Set the gain to 1 and the bias to 0."""
        parameters["gain"][...], parameters["bias"][...] = 1, 0

    def flops(self, m: int, wants_dx: bool) -> int:
        """Count both kernels."""
        return LAWS["layer_norm"].flops(m, self.n_out) + LAWS["layer_norm_backward"].flops(m, self.n_out)

    def kept(self, m: int, dtype: DTypeLike) -> tuple[Array, ...]:
        """Return a buffer for each row's mean and inverse deviation."""
        return (np.zeros((m, 2), dtype),)

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the one call."""
        return [(backend.layer_norm, (a.x, a.parameters["gain"], a.parameters["bias"], self.eps, a.kept[0], a.out))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the one call, which also turns d into dx in place."""
        g = a.gradients
        return [Group([(backend.layer_norm_backward, (a.d, a.x, a.kept[0], a.parameters["gain"], g["gain"], g["bias"]))], *self.parts(0, False)[0])]
