"""Hold products of few rows by a matrix as it lies to float64, and their bits to those of every other cut into rows; show for each rule a variant that is noticed."""

import numpy as np
import pytest
from mpidml_kernels import arrays, backend, cache, dots
from mpidml_kernels.dense import cpu
from numba import njit

from tests.changed import changed

cache.prepare()
SHAPES = [(1, 16, 8), (2, 64, 64), (3, 128, 72), (5, 64, 8), (64, 1024, 136), (7, 208, 64)]
"""Rows, terms, columns."""
types = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)


def given(m, k, n, dtype):
    random = np.random.default_rng([m, k, n])
    return random.standard_normal((m, k)).astype(dtype), random.standard_normal((n, k)).astype(dtype)


def wrong(module, dtype, shapes=SHAPES):
    """Return the shapes in which an element is off by more than the roundings of a sum allow, or was not written, or what lies beyond was."""
    found, go = [], njit(module.dots.py_func)
    for m, k, n in shapes:
        a, b = given(m, k, n, dtype)
        room = np.full(m * n + 2, 9, dtype)
        out = room[1:-1].reshape(m, n)
        out[...] = np.nan
        go(a, b, out)
        exact, sizes = a.astype(np.float64) @ b.T.astype(np.float64), np.abs(a).astype(np.float64) @ np.abs(b).T
        near = np.abs(out - exact) <= np.finfo(dtype).eps * (k / 16 + 8) * sizes
        if not near.all() or room[0] != 9 or room[-1] != 9:
            found.append((m, k, n))
    return found


@types
@pytest.mark.parametrize("nbytes", [64, 32])
def test_each_element_is_the_dot_of_two_rows_whatever_the_width_of_a_vector(dtype, nbytes):
    assert not wrong(changed(dots, [("NBYTES = vector_nbytes()", f"NBYTES = {nbytes}")]), dtype)


@types
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for i in range(whole, m):", "for i in range(whole, m - 1):"),
        ("for j in range(0, n, COLUMNS):", "for j in range(0, n - COLUMNS, COLUMNS):"),
        ("start.type(r)), length)", "start.type(0)), length)"),
        ("range(first, 2 * n_lanes, 2)", "range(0, 2 * n_lanes, 2)"),
        ("divmod(r * COLUMNS + c, n_lanes)", "divmod(c, n_lanes)"),
        ("ir.Constant(vector, [0.0] * n_lanes)", "ir.Constant(vector, [1.0] * n_lanes)"),
    ],
)
def test_the_check_catches_a_wrong_tile(dtype, old, new):
    module = changed(dots, [("NBYTES = vector_nbytes()", "NBYTES = 64"), (old, new)])
    assert wrong(module, dtype)


TAKEN = [(64, 1024, 512), (65, 128, 72), (1, 512, 512), (192, 512, 784)]
LEFT = [(193, 128, 72), (32, 64, 64), (64, 2048, 72), (64, 100, 72), (64, 128, 74)]


def test_where_it_is_faster_products_by_a_transposed_matrix_are_made_so_and_the_others_by_blas(monkeypatch):
    calls, kernels = [], backend("numba")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(dots, "NBYTES", 64)
    monkeypatch.setattr(cpu, "dots", lambda a, b, out: (calls.append(out.shape), np.dot(a, b.T, out)))
    for m, k, n in TAKEN + LEFT:
        a, b = given(m, k, n, np.float32)
        out = np.empty((m, n), np.float32)
        kernels.matmul(a, b.T, out)
        assert np.array_equal(out, np.dot(a, b.T))
    assert calls == [(m, n) for m, _, n in TAKEN]
    a, b = given(64, 1024, 512, np.float32)
    kernels.matmul(a, np.ascontiguousarray(b.T), out := np.empty((64, 512), np.float32))
    kernels.matmul(np.asfortranarray(a), b.T, out)
    assert len(calls) == len(TAKEN)
    for openblas, omp, taken in (("1", "2", True), ("2", "1", False), ("", "1", True), ("", "2", False), ("", "", False)):  # the last: all cores
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", openblas)
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
        assert dots.fits(a, b.T, out) is taken
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(dots, "NBYTES", 0)  # no vectors of a known width
    assert not dots.fits(a, b.T, out)


@pytest.mark.parametrize(
    ("old", "new"), [("k * a.itemsize % NBYTES or n % COLUMNS", "n % COLUMNS"), ("k * a.itemsize % NBYTES or n % COLUMNS", "k * a.itemsize % NBYTES")]
)
def test_a_rule_that_lets_through_what_no_tile_covers_is_caught(monkeypatch, old, new):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    module = changed(dots, [("NBYTES = vector_nbytes()", "NBYTES = 64"), (old, new)])
    let = [(m, k, n) for m, k, n in LEFT if module.fits(np.empty((m, k), "f4"), np.empty((n, k), "f4").T, np.empty((m, n), "f4"))]
    assert len(let) == 1
    if new == "n % COLUMNS":  # the other writes beyond the end
        assert wrong(module, np.float32, let) == let


@types
def test_an_element_has_the_same_bits_however_many_rows_and_columns_there_are(dtype):
    go = njit(changed(dots, [("NBYTES = vector_nbytes()", "NBYTES = 64")]).dots.py_func)
    a, b = given(64, 1024, 136, dtype)
    whole = np.empty((64, 136), dtype)
    go(a, b, whole)
    for lo, hi in ((0, 1), (5, 12), (0, 63), (31, 64)):
        part = np.empty((hi - lo, 136), dtype)
        go(a[lo:hi], b, part)
        assert np.array_equal(part, whole[lo:hi])
    part = np.empty((64, 64), dtype)
    go(a, b[72:], part)
    assert np.array_equal(part, whole[:, 72:])


def lying_elsewhere(module, shape, dtype):
    """Return how many of a few arrays of zeros are not what they should be, or if they are large do not begin with a line of the cache."""
    kernels = module.of_numpy()
    found = [kernels["zeros"](shape, dtype) for _ in range(5)]
    right = [a.shape == np.zeros(shape).shape and a.dtype == dtype and a.flags.c_contiguous and a.flags.writeable and not a.any() for a in found]
    in_line = [a.nbytes < module.LARGE_NBYTES or kernels["address"](a) % 64 == 0 for a in found]
    return 5 - sum(map(min, right, in_line))


@types
@pytest.mark.parametrize("shape", [(64, 1024), (1 << 20,), 4096, (0, 7), (3,), (65, 129)])
def test_large_arrays_begin_with_a_line_of_the_cache(shape, dtype):
    assert not lying_elsewhere(arrays, shape, dtype)
    address = '-int(room.__array_interface__["data"][0])'
    if np.zeros(shape).size > 3:
        assert lying_elsewhere(changed(arrays, [(address, f"({address.replace('-', '8 - ')})")]), shape, dtype)
