"""Hold products of few rows, in which no matrix is copied, to float64, and their bits to those of any other cut; show for each rule a variant that is noticed."""

import numpy as np
import pytest
from mpidml_kernels import arrays, backend, cache, dots, few_rows, strips
from mpidml_kernels.dense import cpu
from numba import njit

from tests.changed import changed

cache.prepare()
FROM = "from mpidml_kernels.few_rows import NBYTES"
SHAPES = {
    dots: [(1, 16, 8), (2, 64, 64), (3, 128, 72), (5, 64, 8), (64, 1024, 136), (7, 208, 64)],
    strips: [(1, 1, 16), (8, 128, 48), (13, 200, 112), (64, 513, 80)],
}
"""Rows, terms, columns."""
types = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
ways = pytest.mark.parametrize("way", [dots, strips], ids=["dots", "strips"])


def given(m, k, n, dtype):
    random = np.random.default_rng([m, k, n])
    return random.standard_normal((m, k)).astype(dtype), random.standard_normal((k, n)).astype(dtype)


def of_vectors(way, nbytes, *changes):
    """Return the kernel of one way, for vectors of so many bytes, whatever this CPU has."""
    return njit(getattr(changed(way, [(FROM, f"NBYTES = {nbytes}"), *changes]), "dots" if way is dots else "strips").py_func)


def multiply(way, go, a, b, out):
    go(a, np.ascontiguousarray(b.T) if way is dots else b, out)


def wrong(way, go, dtype):
    """Return the shapes in which an element is off by more than the roundings of a sum allow, or was not written, or what lies beyond was."""
    found = []
    for m, k, n in SHAPES[way]:
        a, b = given(m, k, n, dtype)
        room = np.full(m * n + 2, 9, dtype)
        out = room[1:-1].reshape(m, n)
        out[...] = np.nan
        multiply(way, go, a, b, out)
        exact, sizes = a.astype(np.float64) @ b.astype(np.float64), np.abs(a).astype(np.float64) @ np.abs(b)
        near = np.abs(out - exact) <= np.finfo(dtype).eps * (k / 16 + 8) * sizes
        if not near.all() or room[0] != 9 or room[-1] != 9:
            found.append((m, k, n))
    return found


@types
@ways
@pytest.mark.parametrize("nbytes", [64, 32])
def test_each_element_is_the_sum_of_its_terms_whatever_the_width_of_a_vector(way, dtype, nbytes):
    assert not wrong(way, of_vectors(way, nbytes), dtype)


@types
@pytest.mark.parametrize(
    ("way", "old", "new"),
    [
        (dots, "for i in range(whole, m):", "for i in range(whole, m - 1):"),
        (dots, "for j in range(0, n, COLUMNS):", "for j in range(0, n - COLUMNS, COLUMNS):"),
        (dots, "start.type(r)), length)", "start.type(0)), length)"),
        (dots, "range(first, 2 * n_lanes, 2)", "range(0, 2 * n_lanes, 2)"),
        (dots, "divmod(r * COLUMNS + c, n_lanes)", "divmod(c, n_lanes)"),
        (dots, "ir.Constant(vector, [0.0] * n_lanes)", "ir.Constant(vector, [1.0] * n_lanes)"),
        (strips, "last = min(first + PART, k)", "last = min(first + PART - 1, k)"),
        (strips, "range(n - n % width, n, lanes)", "range(n - n % width + lanes, n, lanes)"),
        (strips, "                _one(a, i, b, j, first, last, out)", "                _one(a, i, b, j, first, last - 1, out)"),
        (strips, "                _one_end(a, i, b, j, first, last, out)", "                _one_end(a, i, b, 0, first, last, out)"),
        (strips, "_first(a, 0, b, j, first, last, out)", "_first(a, 0, b, j, first, last - 1, out)"),
        (strips, 'builder.icmp_signed("==", first, first.type(0))', 'builder.icmp_signed(">=", first, first.type(0))'),
        (strips, "builder.add(i, i.type(r)) for r", "builder.add(i, i.type(0)) for r"),
        (strips, "[0.0] * n_lanes)", "[1.0] * n_lanes)"),
    ],
)
def test_the_check_catches_a_wrong_tile(dtype, way, old, new):
    assert wrong(way, of_vectors(way, 64, (old, new)), dtype)


@types
@ways
@pytest.mark.parametrize("nbytes", [64, 32])
def test_an_element_has_the_same_bits_however_many_rows_and_columns_there_are(way, dtype, nbytes):
    go = of_vectors(way, nbytes)
    a, b = given(64, 1024, 144, dtype)
    whole = np.empty((64, 144), dtype)
    multiply(way, go, a, b, whole)
    for rows in (slice(0, 1), slice(5, 12), slice(0, 63), slice(31, 64)):
        part = np.empty_like(whole[rows])
        multiply(way, go, a[rows], b, part)
        assert np.array_equal(part, whole[rows])
    part = np.empty((64, 64), dtype)
    multiply(way, go, a, np.ascontiguousarray(b[:, 80:]), part)
    assert np.array_equal(part, whole[:, 80:])


def test_sums_of_so_many_terms_in_their_order_are_added_each_term_rounded_once():
    a, b = given(9, 300, 64, np.float32)
    multiply(strips, of_vectors(strips, 64), a, b, out := np.empty((9, 64), np.float32))
    expected = np.zeros((9, 64), np.float32)
    for first in range(0, 300, strips.PART):
        part = np.zeros_like(expected)
        for term in range(first, min(first + strips.PART, 300)):  # float64 holds a product of two float32 whole, and its sum with a third nearly so
            part = (part.astype(np.float64) + np.multiply.outer(a[:, term].astype(np.float64), b[term])).astype(np.float32)
        expected += part
    assert np.array_equal(out, expected)


def off(module):
    """Return by how many roundings the sum of very many terms of one sign is off."""
    k = 1 << 18
    go, out = of_vectors(module, 64), np.empty((8, 16), np.float32)
    go(np.full((8, k), 0.1, np.float32), np.ones((k, 16), np.float32), out)
    exact = float(np.float32(0.1)) * k
    return np.abs(out - exact).max() / exact / np.finfo(np.float32).eps


def test_very_many_terms_are_no_matter_and_one_sum_of_all_would_be_seen(monkeypatch):
    assert off(strips) < 1e3
    source = of_vectors
    monkeypatch.setitem(globals(), "of_vectors", lambda module, nbytes: source(module, nbytes, ("PART = 8, 3, 128", "PART = 8, 3, 1 << 30")))
    assert off(strips) > 3e3


@types
@pytest.mark.parametrize("turn", [False, True], ids=["strips", "dots"])
def test_the_kernels_as_they_are_declared_take_read_only_arrays_and_rows_of_a_larger_one(monkeypatch, dtype, turn):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    a, b = given(64, 512, 512, dtype)
    b = np.ascontiguousarray(b.T).T if turn else b
    a.flags.writeable = b.flags.writeable = False
    room = np.full((66, 512), 9, dtype)
    assert few_rows.few(a, b, room[1:65]) is bool(few_rows.NBYTES)
    assert few_rows.NBYTES != 64 or (dots if turn else strips).fits(a, b)
    backend("numba").matmul(a, b, room[1:65])
    np.testing.assert_allclose(room[1:65], a.astype(np.float64) @ b, atol=1e-3)
    assert (room[[0, 65]] == 9).all()


TAKEN = [(64, 1024, 512), (65, 128, 96), (1, 512, 512), (192, 512, 784)]
STRIPS = [(64, 1024, 512), (65, 100, 96), (8, 4096, 64), (192, 784, 512)]
LEFT = [(193, 128, 96), (32, 64, 64), (64, 100, 74)]


def test_which_products_are_made_how(monkeypatch):
    calls, kernels = [], backend("numba")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    for module in (few_rows, dots, strips):
        monkeypatch.setattr(module, "NBYTES", 64)
    monkeypatch.setattr(cpu, "dots", lambda a, b, out: (calls.append(("dots", a.shape)), np.dot(a, b.T, out)), raising=False)
    monkeypatch.setattr(cpu, "strips", lambda a, b, out: (calls.append(("strips", a.shape)), np.dot(a, b, out)), raising=False)

    def go(shapes, turn, order="C"):
        calls.clear()
        for m, k, n in shapes:
            a, b = given(m, k, n, np.float32)
            b, out = np.ascontiguousarray(b.T).T if turn else b, np.empty((m, n), np.float32)
            kernels.matmul(np.asarray(a, order=order), b, out)
            assert np.array_equal(out, np.dot(np.asarray(a, order=order), b))
        return [way for way, _ in calls], [shape for _, shape in calls]

    assert go(TAKEN, turn=True) == (["dots"] * 4, [(m, k) for m, k, _ in TAKEN])
    assert go(STRIPS, turn=False) == (["strips"] * 4, [(m, k) for m, k, _ in STRIPS])
    assert go([*LEFT, (64, 2048, 96), (64, 100, 72)], turn=True) == go([*LEFT, (7, 1024, 512)], turn=False) == ([], [])
    assert go(TAKEN[:1], turn=False, order="F") == go(TAKEN[:1], turn=True, order="F") == ([], [])
    kernels.matmul(*(x.astype(np.float16) for x in given(64, 512, 512, np.float16)), np.empty((64, 512), np.float16))
    for shape in ((32, 512), (64, 256)):
        with pytest.raises(ValueError, match="output array"):  # what does not fit is NumPy's to refuse
            kernels.matmul(*given(64, 512, 512, np.float32), np.empty(shape, np.float32))
    assert not calls
    for openblas, omp, taken in (("1", "2", True), ("2", "1", False), ("", "1", True), ("", "2", False), ("", "", False)):  # the last: all cores
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", openblas)
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
        assert bool(go(TAKEN[:1], turn=False)[0]) is bool(go(TAKEN[:1], turn=True)[0]) is taken
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(few_rows, "NBYTES", 0)  # no vectors of a known width
    assert go(TAKEN[:1], turn=False) == go(TAKEN[:1], turn=True) == ([], [])


@pytest.mark.parametrize(
    ("way", "old", "new", "shape"),
    [
        (dots, "row % NBYTES or b.shape[1] % COLUMNS", "b.shape[1] % COLUMNS", (64, 100, 72)),
        (strips, "b.shape[1] * a.itemsize % NBYTES == 0 and ", "", (64, 100, 74)),
    ],
)
def test_a_rule_that_lets_through_what_no_tile_covers_is_caught(monkeypatch, way, old, new, shape):
    m, k, n = shape
    b = np.empty((k, n), "f4", "F" if way is dots else "C")
    for changes, lets in (([], False), ([(old, new)], True)):
        module = changed(way, [(FROM, "NBYTES = 64"), *changes])
        assert module.fits(np.empty((m, k), "f4"), b) is lets
    if way is dots:  # the other writes beyond the end
        monkeypatch.setitem(SHAPES, dots, [shape])
        assert wrong(way, of_vectors(way, 64), np.float32)


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
