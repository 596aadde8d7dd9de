"""Hold the product that is ours to the reference, in several orders of threads, whatever is transposed; break it, and see that it is noticed."""

import functools
import itertools

import numpy as np
import pytest
from mpidml_kernels import backend, dense, update
from mpidml_kernels.dense import gpu as dense_on_gpu

from tests.kernels.test_gpu import assert_noticed
from tests.shim import cupy_double
from tests.shim.backend import ORDERS, on_shim

FAMILIES = [update, dense]
REFERENCE = backend("numpy")
on_device = functools.cache(lambda order: on_shim(order, *FAMILIES))
SIZES = [(1, 1, 1), (1, 40, 1), (31, 16, 33), (32, 17, 64), (65, 33, 31), (3, 70, 100), (4, 0, 5), (0, 3, 2), (20, 400, 30), (33, 300, 2)]


def of_size(m, k, n, dtype=np.float32, turned=(False, False)):
    random = np.random.default_rng(m + k + n)
    a, b = (random.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n)))
    a, b = (np.ascontiguousarray(each.T).T if of else each for each, of in zip((a, b), turned, strict=True))
    return a, b, random.standard_normal((m, n)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
@pytest.mark.parametrize(("name", "order"), [*(("matmul", order) for order in ORDERS), ("matmul_add", "shuffle")])
def test_products_are_the_reference_s_whatever_is_transposed(name, dtype, order):
    for size, turned in itertools.product(SIZES, itertools.product((False, True), repeat=2)):
        a, b, out = of_size(*size, dtype, turned)
        expected = out.astype(np.float64) if name == "matmul_add" else np.zeros_like(out, np.float64)
        expected += a.astype(np.float64) @ b
        getattr(on_device(order), name)(a, b, out)
        np.testing.assert_allclose(out, expected, rtol=1e-12 if dtype is np.float64 else 1e-5, atol=100 * np.finfo(dtype).eps)


def test_a_product_has_the_same_bits_whatever_the_order_of_threads():
    found = []
    for order in ORDERS:
        a, b, out = of_size(70, 500, 40)
        on_device(order).matmul(a, b, out)
        found.append(out.tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("name", ["matmul", "matmul_add"])
def test_a_large_product_and_one_of_arrays_with_gaps_are_left_to_cublas(name, monkeypatch):
    kernels = on_device("forward").kernels
    calls = []
    monkeypatch.setattr(cupy_double, "matmul", lambda a, b, out, real=cupy_double.matmul: (calls.append(a.shape), real(a, b, out))[1])
    a, b, out = (cupy_double.asarray(each) for each in of_size(8, 4, 6))
    getattr(kernels, name)(a, b, out)
    assert not calls
    monkeypatch.setattr(dense_on_gpu, "SMALL", 8 * 4 * 6)
    getattr(kernels, name)(a, b, out)
    assert not calls, "as many as are small"
    monkeypatch.setattr(dense_on_gpu, "SMALL", 8 * 4 * 6 - 1)
    getattr(kernels, name)(a, b, out)
    monkeypatch.undo()
    monkeypatch.setattr(cupy_double, "matmul", lambda a, b, out, real=cupy_double.matmul: (calls.append(a.shape), real(a, b, out))[1])
    getattr(kernels, name)(a[:, 1:3], b[1:3], out)
    assert calls == [(8, 4), (8, 2)]


MUTANTS = [
    ("dense", "matmul", "blockIdx.x / across * 32", "blockIdx.x / across * 8", "differs|race on out"),
    ("dense", "matmul", "l0 < last; l0 += 16", "l0 + 16 <= last; l0 += 16", "differs"),
    ("dense", "matmul", "take_tile(left, a, l0, i0, k, m, !a_turned);", "take_tile(left, a, l0, i0, k, m, a_turned);", "differs"),
    ("dense", "matmul", "__syncthreads();\n        for", "for", "race on __shared|uninitialised"),
    ("dense", "matmul", "__syncthreads();  // before the next tiles come", "", "race on __shared"),
    ("dense", "matmul", "i < m && j < n", "i < m", "out-of-bounds|race on out"),
    ("dense", "matmul", "i < m && j < n", "j < n", "out-of-bounds|race on out"),
    ("dense", "matmul", "l0 + l < depth && r0 + r < n", "l0 + l < depth", "out-of-bounds"),
    ("dense", "matmul", "4 * threadIdx.y + r] * right", "4 * threadIdx.y] * right", "differs"),
    ("dense", "matmul_add", "adds && blockIdx.y == 0 ? before[i * n + j] + sums[r] : sums[r]", "sums[r]", "differs"),
    ("dense", "matmul_add", "adds && blockIdx.y == 0 ?", "adds ?", "differs"),
    ("dense", "matmul", "l0 = first; l0 < last", "l0 = 0; l0 < k", "differs"),
    ("dense", "matmul", "first + span < k ? first + span : k", "first + span", "differs"),
    ("dense", "matmul", "(blockIdx.y * m + i) * n", "i * n", "race on out|uninitialised"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "old", "new", "said"), MUTANTS, ids=range(len(MUTANTS)))
def test_a_broken_product_is_noticed(where, name, old, new, said, monkeypatch):
    assert_noticed(monkeypatch, FAMILIES, of_size(40, 392, 40), where, name, old, new, said)
