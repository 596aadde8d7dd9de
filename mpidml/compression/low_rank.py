"""Send two thin tables whose product is near the tensor; the rest is sent later (PowerSGD: Vogels et al., NeurIPS 2019, algorithm 1).

One step of the power method, begun where the last one ended: P = orthonormal rows of Q V^T, then Q = P V. V is the tensor as a table, its first axis by all others.
Conserves within rounding, not to the bit, for the product is a sum whose order differs between encoding and decoding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidml.compression.base import Codec, Shape, State, fields, positive, rows_and_columns
from mpidml.core import rng
from mpidml.core.flat import Array


class LowRank(Codec):
    """Send `rank` rows of either side. A tensor with one axis, or one that would gain nothing, is sent as it is."""

    whole = True

    def __init__(self, rank: int = 4) -> None:
        self.rank = positive("rank", rank)

    def _rank(self, shape: Shape) -> int:
        """Return the rank used; 0 for a tensor that is sent as it is."""
        m, n = rows_and_columns(shape)
        rank = min(self.rank, m, n)
        return rank if len(shape) > 1 and (m + n) * rank < m * n else 0

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return itemsize rank (m + n) for a table of m x n."""
        m, n = rows_and_columns(shape)
        return itemsize * (self._rank(shape) * (m + n) or m * n)

    def init(self, shape: Shape, dtype: DTypeLike) -> State:
        """Return the residual and the directions to begin with, "q", the same on every side."""
        q = rng.stream(0, "compression:low_rank", *shape).standard_normal((self._rank(shape), rows_and_columns(shape)[1]))
        return super().init(shape, dtype) | {"q": q.astype(dtype)}

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Take a step of the power method; `noise` is not needed."""
        residual, q = state["residual"], state["q"]
        backend.add(residual, x.reshape(-1))
        if not backend.is_finite(residual):
            return False
        v = residual.reshape(rows_and_columns(x.shape))
        if not q.size:
            backend.copy(code.view(x.dtype), residual)
            residual.fill(0)
            return True
        p, new = self._fields(code, x)
        backend.matmul(q, v.T, p)
        backend.orthonormalise(p)
        backend.matmul(p, v, new)
        backend.add_product(p, new, -1.0, v)
        for i, found in enumerate(backend.host(new)):
            if found.any():  # a direction in which there is nothing now would lead nowhere ever after
                backend.copy(q[i], new[i])
        return bool(backend.is_finite(new.reshape(-1)))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add the product."""
        if self._rank(out.shape):
            p, q = self._fields(code, out)
            backend.add_product(p, q, 1.0, out.reshape(rows_and_columns(out.shape)))
        else:
            backend.add(out.reshape(-1), code.view(out.dtype))

    def _fields(self, code: Array, x: Array) -> list[Array]:
        rank, (m, n) = self._rank(x.shape), rows_and_columns(x.shape)
        p, q = fields(code, (x.dtype, rank * m), (x.dtype, rank * n))
        return [p.reshape(rank, m), q.reshape(rank, n)]
