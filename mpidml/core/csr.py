"""Hold sparse rows compressed by row, in the spelling of an ndarray where code asks for sizes or for a slice of rows.

    row i     values[j] in columns[j] for starts[i] <= j < starts[i + 1]; what is not stored is zero
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Csr:
    """n sparse rows of `n_features`: starts int64 (n + 1,), columns int32 and values, each row's in ascending order of columns.

    A slice of neighbouring rows is a view: it has the columns and values of all, and its own starts.
    """

    ndim = 2

    def __init__(self, starts: Array, columns: Array, values: Array, n_features: int) -> None:
        self.starts, self.columns, self.values, self.n_features = starts, columns, values, n_features

    @classmethod
    def of(cls, matrix: Any, factor: Array, dtype: Any) -> Csr:
        """Take the rows of a scipy.sparse CSR matrix, each column times its `factor`; zeros that were stored are left out, repeated columns summed."""
        if not matrix.has_canonical_format or not matrix.data.all():
            matrix = matrix.copy()
            matrix.sum_duplicates()
            matrix.eliminate_zeros()
        with np.errstate(over="ignore"):
            values = (matrix.data * factor[matrix.indices]).astype(dtype)
        return cls(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), values, matrix.shape[1])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, rows: slice) -> Csr:
        lo, hi, step = rows.indices(len(self))
        if step == 1:
            return Csr(self.starts[lo : max(lo, hi) + 1], self.columns, self.values, self.n_features)
        listed = np.arange(lo, hi, step)
        counts = self.starts[listed + 1] - self.starts[listed]
        starts = np.concatenate([[0], np.cumsum(counts)])
        at = np.arange(starts[-1]) + np.repeat(self.starts[listed] - starts[:-1], counts)
        return Csr(starts, self.columns[at], self.values[at], self.n_features)

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """Return starts, columns and values, as kernels take them."""
        return self.starts, self.columns, self.values

    @property
    def n_stored(self) -> int:
        """Return the number of values that the rows store."""
        return int(self.starts[-1] - self.starts[0])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.n_features

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.values.dtype
        return found
