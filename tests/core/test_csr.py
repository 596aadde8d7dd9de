"""Sparse rows have the sizes and the slices of the matrix that they stand for."""

import numpy as np
import pytest
import scipy.sparse

from mpidml.core.csr import Csr

MATRIX = scipy.sparse.random(37, 11, 0.2, format="csr", random_state=0)
DENSE = MATRIX.toarray()


def dense(x):
    out = np.zeros(x.shape, x.dtype)
    for i, row in enumerate(out):
        at = slice(x.starts[i], x.starts[i + 1])
        row[x.columns[at]] = x.values[at]
    return out


@pytest.mark.parametrize("rows", [slice(None), slice(5, 20), slice(20, 5), slice(30, 99), slice(None, None, 4), slice(3, 30, 7), slice(0, 0)], ids=str)
def test_a_slice_is_that_of_the_matrix(rows):
    x = Csr.of(MATRIX, np.ones(11), np.float64)
    part = x[rows]
    assert np.array_equal(dense(part), DENSE[rows]) and part.shape == DENSE[rows].shape and len(part) == len(DENSE[rows])
    assert part.n_stored == np.count_nonzero(DENSE[rows])
    assert np.array_equal(dense(part[1:3]), DENSE[rows][1:3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_are_scaled_and_neither_zeros_nor_repeated_columns_are_stored(dtype):
    matrix = scipy.sparse.csr_matrix((np.array([2, 3, 0, 5, -5]), np.array([1, 1, 0, 2, 2]), np.array([0, 3, 5])), shape=(2, 3))
    before = matrix.data.copy()
    x = Csr.of(matrix, np.array([1.0, 0.5, 4.0]), dtype)
    assert np.array_equal(dense(x), [[0, 2.5, 0], [0, 0, 0]]) and x.n_stored == 1
    assert x.dtype == dtype and x.starts.dtype == np.int64 and x.columns.dtype == np.int32
    assert np.array_equal(matrix.data, before), "the matrix belongs to its owner"
