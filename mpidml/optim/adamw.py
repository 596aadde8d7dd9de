"""Descend as Adam does and decay the weights beside it: w = w - rate (m' / (sqrt(v') + eps) + decay w) (Loshchilov and Hutter, ICLR 2019).

The decay is decoupled: it is not divided by the size of the gradients, as that of `decay+adam` is. As in PyTorch it is multiplied by the learning rate.
"""

from __future__ import annotations

from mpidml.optim.base import Moments


class AdamW(Moments):
    """Keep the running mean `m` of the gradient and `v` of its square; 0 <= beta1, beta2 < 1, decay, eps >= 0."""

    def __init__(self, decay: float = 0.01, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(beta1, beta2, eps, decay)
