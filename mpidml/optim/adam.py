"""Descend by running means: w = w - rate m' / (sqrt(v') + eps), m' and v' without their bias (Kingma and Ba, ICLR 2015, algorithm 1)."""

from __future__ import annotations

from mpidml.optim.base import Moments


class Adam(Moments):
    """Keep the running mean `m` of the gradient and `v` of its square; 0 <= beta1, beta2 < 1, eps >= 0."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(beta1, beta2, eps, 0.0)
