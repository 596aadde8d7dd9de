"""Train a network each of whose layers lies on several ranks: columns of one weight, rows of the next, so that one sum a pair is all that travels.

    x, whole  ->  columns of W1  ->  rows of W2  ->  sum  ->  whole         every rank has 1 / P of each weight, and computes 1 / P of each product
"""

from __future__ import annotations

from typing import ClassVar

from mpidml.runtime.staged import Staged


class Tensor(Staged):
    """All ranks are parts of every layer, unless --grid says otherwise. Source: Shoeybi et al. 2019 (Megatron-LM)."""

    default_axis: ClassVar[str] = "tensor"
