"""Run CUDA kernels on the CPU, in several orders of threads, and hold them to their references; break each, and see that it is noticed."""

import functools
import inspect
import re
from importlib.resources import files

import numpy as np
import pytest
from mpidml_kernels import backend, dense, launch, loss, update

from tests.shim import cupy_double
from tests.shim.backend import ORDERS, on_shim
from tests.shim.compiled import KernelError, Module

FAMILIES = [update, dense, loss]
REFERENCE = backend("numpy")
FOLDER = files("mpidml_kernels")
SIZES = [0, 1, 31, 257, 1000]
on_device = functools.cache(lambda order: on_shim(order, *FAMILIES))
orders = pytest.mark.parametrize("order", ORDERS)
types = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)


def arguments(kernel, n, dtype):
    """Return an array for each parameter of an elementwise reference, and a number where it wants one."""
    random = np.random.default_rng(n)
    numbers = {"s": 0.3, "rate": 0.1, "mu": 0.9, "limit": 0.5}
    return [numbers[name] if name in numbers else random.standard_normal(n).astype(dtype) for name in inspect.signature(kernel).parameters]


def of_rows(kernel, m=40, n=70):
    """Return arguments of a kernel of rows, by the names that the references give them."""
    random = np.random.default_rng(n)
    table = {name: random.standard_normal((m, n)).astype(np.float32) for name in ("z", "d", "a", "x", "out", "t")}
    table["z"][np.arange(0, m, 2), np.arange(0, m, 2) % n] += 10  # every other row is right
    known = {"b": table["z"][0].copy(), "gb": np.zeros(n, np.float32), "weights": np.linspace(0.5, 2, n).astype(np.float32), "y": np.arange(m) % n}
    known |= {"ids": np.arange(m) * 3_000_000_019, "key": np.array([0x9ABCDEF012345678], np.uint64), "rate": 0.3, "scale": 0.25}
    known |= {"smoothing": 0.1, "margin": 1.5, "delta": 0.7}
    if kernel is REFERENCE.weighted_xent:  # what has no weight does not count, however far below it lies
        known["weights"][3], table["z"][:, 3] = 0, -np.inf
    return [(table | known)[name] for name in inspect.signature(kernel).parameters]


@orders
@types
@pytest.mark.parametrize("name", update.LAWS)
def test_vector_kernels_agree_with_their_references(name, dtype, order):
    for n in SIZES:
        given = arguments(getattr(REFERENCE, name), n, dtype)
        here, there = ([a.copy() if isinstance(a, np.ndarray) else a for a in given] for _ in range(2))
        expected, got = getattr(REFERENCE, name)(*here), getattr(on_device(order), name)(*there)
        if expected is not None:
            np.testing.assert_allclose(got, expected, rtol=1e-12)
        for a, b in zip(there, here, strict=True):
            np.testing.assert_allclose(a, b, rtol=30 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)


@orders
def test_a_sum_has_the_same_bits_whatever_the_order_of_threads(order):
    g = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    assert on_device(order).sum_of_squares(g) == on_device("forward").sum_of_squares(g)


def test_nan_passes_every_kernel():
    g = np.array([1, np.nan, -3], np.float32)
    on_device("forward").clip_transform(g, 0.5)
    assert np.isnan(g[1]) and g[0] == 0.5 and g[2] == -0.5
    w = np.array([np.nan, 0, -2], np.float32)
    on_device("forward").l1_transform(g := np.zeros(3, np.float32), w, 0.25)
    assert np.isnan(g[0]) and g[1] == 0 and g[2] == -0.25


MUTANTS = [
    ("update", "add", "a[i] += b[i];", "a[i] = b[i] + a[i];", None),  # not broken
    ("update", "momentum_in_place", "w[i] -= rate * x;", "w[i] += rate * x;", "differs"),
    ("update", "add", "FOR_EACH(i, n) a[i] += b[i];", "FOR_EACH(i, n + 1) a[i] += b[i];", "out-of-bounds 4-byte read, 0 bytes past the end of"),
    ("update", "add", "FOR_EACH(i, n) a[i] += b[i];", "for (Index i = threadIdx.x; i < n; i += blockDim.x) a[i] += b[i];", "race on a"),
    ("update", "add3", "b[i] + c[i]", "b[i] - c[i]", "differs"),
    ("update", "scale", "a[i] *= s;", "a[i] += s;", "differs"),
    ("update", "decay_transform", "g[i] += rate * w[i];", "g[i] = rate * w[i];", "differs"),
    ("update", "l1_transform", "x < 0 ? (real)-1", "x < 0 ? (real)1", "differs"),
    ("update", "clip_transform", "g[i] = x < -limit ? -limit : x;", "g[i] = x;", "differs"),
    ("update", "descend_in_place", "w[i] -= rate * g[i];", "w[i] += rate * g[i];", "differs"),
    ("update", "momentum", "out[i] = w[i] - rate * x;", "out[i] = w[i] - rate * g[i];", "differs"),
    ("update", "momentum_transform", "g[i] = x;", "", "differs"),
    ("update", "nesterov_in_place", "w[i] -= rate * (slope + mu * x);", "w[i] -= rate * x;", "differs"),
    ("update", "nesterov_transform", "g[i] = slope + mu * x;", "g[i] = mu * x;", "differs"),
    ("update", "sum_of_squares", "for (int i = threadIdx.x; i < n; i += blockDim.x) total", "for (int i = threadIdx.x; i < 1; ++i) total", "differs"),
    ("update", "descend", "out[i] = w[i] - rate * g[i]", "out[i] = w[i] - rate * g[i + 1]", "out-of-bounds"),
    ("update", "nesterov", "out[i] = w[i] - rate * (slope + mu * x);", "out[i] = w[i] - rate * x;", "differs"),
    ("update", "sum_of_squares", "total = block_sum(total, scratch);\n    if (threadIdx.x == 0) sums[blockIdx.x] = total;", "sums[blockIdx.x] = total;", "race on sums"),
    ("update", "sum_of_squares", "i < n; i += blockDim.x) total", "i <= n; i += blockDim.x) total", "out-of-bounds"),
    ("device", "sum_of_squares", "= v;\n    __syncthreads();\n    return warp_sum", "= v;\n    return warp_sum", "race on __shared|uninitialised"),
    ("device", "sum_of_squares", "for (int by = 16; by > 0; by >>= 1) v += ", "for (int by = 8; by > 0; by >>= 1) v += ", "differs"),
    ("device", "sum_of_squares", "lane < n_warps ? scratch[lane] : (V)0", "scratch[lane]", "uninitialised __shared__"),
    ("device", "sum_of_squares", "v += __shfl_xor_sync(EVERY_LANE, v, by)", "v += __shfl_xor_sync(0x0000ffffu, v, by)", "which is not in mask 0000ffff"),
    ("dense", "bias_linear", "ACTIVATE(v)", "ACTIVATE(v + 1)", "differs"),
    ("dense", "bias_relu", "v < 0 ? (real)0 : v", "v > 0 ? (real)0 : v", "differs"),
    ("dense", "bias_tanh", "b[j];", "b[i];", "differs"),
    ("dense", "bias_sigmoid", "tanh((real)0.5 * v) + (real)0.5", "tanh((real)0.5 * v)", "differs"),
    ("dense", "bias_leaky_relu", "v > 0 ? v : (real)0.01 * v", "v > 0 ? v : (real)0.1 * v", "differs"),
    ("dense", "bias_softplus", "log1p(exp(-fabs(v)))", "log1p(exp(-v))", "differs"),
    ("dense", "bias_gelu", "z[i * n + j] = v;\n        a", "a", "differs"),
    ("dense", "linear_backward", "threadIdx.y == 0 && column < n", "threadIdx.y == 0", "out-of-bounds|race on sums"),
    ("dense", "relu_backward", "known <= 0 ? (real)0 : v", "known < 0 ? v : (real)0", "differs"),
    ("dense", "tanh_backward", "total = column_sum(total, scratch);", "", "differs"),
    ("dense", "sigmoid_backward", "sums[blockIdx.y * n + column]", "sums[column]", "race on sums|uninitialised|differs"),
    ("dense", "leaky_relu_backward", "known <= 0 ? (real)0.01 * v : v", "v", "differs"),
    ("dense", "softplus_backward", "-expm1(-known)", "expm1(-known)", "differs"),
    ("dense", "gelu_backward", "g + w * g", "w * g", "differs"),
    ("dense", "linear_backward", "for (Index i = 0; i < k; ++i) total", "for (Index i = 1; i < k; ++i) total", "differs"),
    ("dense", "dropout", "kept ? x[i * n + j] * scale", "kept ? x[i * n + j]", "differs"),
    ("dense", "dropout_in_place", "kept ? x[i * n + j] * scale : (real)0;\n    }\n}\n", "x[i * n + j] * scale;\n    }\n}\n", "differs"),
    ("device", "linear_backward", "for (int row = 1; row < 8; ++row) v", "for (int row = 1; row < 9; ++row) v", "out-of-bounds"),
    ("device", "linear_backward", "threadIdx.x] = v;\n    __syncthreads();", "threadIdx.x] = v;", "race|uninit"),
    ("device", "dropout", "key >> 32", "key", "differs"),
    ("device", "linear_backward", "(Index)gridDim.y * 8", "8", "differs"),
    ("loss", "softmax_xent", "__syncthreads();  // the label's output is read", "", "race on z"),
    ("loss", "softmax_xent", "total = block_sum(total, scratch);\n    FOR", "FOR", "differs"),
    ("loss", "weighted_xent", "if (t != 0) along", "along", "differs"),
    ("loss", "weighted_xent", "mass = block_sum(mass, wide);", "", "differs"),
    ("loss", "hinge", "row[label] = -back;", "row[label] = back;", "differs"),
    ("loss", "count_largest", "first = -block_max(-first, places);", "", "differs"),
    ("loss", "count_signs", "right = __syncthreads_and(right);", "", "differs"),
    ("loss", "squared_error", "z[i] = e * scale;", "z[i] = e;", "differs"),
    ("loss", "huber", "(double)e - 0.5 * (double)c", "(double)e - (double)c", "differs"),
    ("loss", "binary_xent", "log1p((double)e);", "log((double)e);", "differs"),
]  # fmt: skip


_launched = {}


def launched(families, name, given):
    """Return the names of the kernels that a call of `name` launches for arrays of these shapes: no other is compiled when one is broken."""
    key = name, *(a.shape for a in given if isinstance(a, np.ndarray)), launch.MOST_BLOCKS
    if key not in _launched:
        names, whole, go = set(), on_shim("forward", *families), launch.Gpu.launch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch.Gpu, "launch", lambda gpu, family, kernel, *rest, **how: (names.add(kernel), go(gpu, family, kernel, *rest, **how)))
            getattr(whole, name)(*(a.copy() if isinstance(a, np.ndarray) else a for a in given))
        _launched[key] = names
    return _launched[key]


def assert_noticed(monkeypatch, families, given, where, name, old, new, said):
    """Replace `old` in the file of a family, or in "device"; then kernel `name` differs from its reference (or not: None), or the shim says `said`."""
    header, code = (
        (FOLDER / "device.cuh").read_text().replace("#pragma once", ""),
        (FOLDER / where / "gpu.cu").read_text() if where != "device" else "",
    )
    assert old in (code or header)

    only = launched(families, name, given)

    def build(source, real, include, **how):
        source = source.replace(old, new) if source == code else source
        return Module(source.replace('#include "device.cuh"', header if code else header.replace(old, new)), real, only=only, **how)

    monkeypatch.setattr(cupy_double, "Module", build)
    here, there = ([a.copy() if isinstance(a, np.ndarray) else a for a in given] for _ in range(2))
    with np.errstate(all="ignore"):
        expected = getattr(REFERENCE, name)(*here)
    broken = on_shim("forward", *families)
    if said in (None, "differs"):
        got = getattr(broken, name)(*there)
        pairs = [*zip(there, here, strict=True), *([(got, expected)] if expected is not None else [])]
        assert all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs) == (said is None)
        return
    with pytest.raises(KernelError) as error:
        getattr(broken, name)(*there)
    assert re.search(said, str(error.value)), str(error.value)


@pytest.mark.parametrize(("where", "name", "old", "new", "said"), MUTANTS, ids=range(len(MUTANTS)))
def test_a_broken_kernel_is_noticed(where, name, old, new, said, monkeypatch):
    given = arguments(getattr(REFERENCE, name), 1000, np.float32) if name in update.LAWS else of_rows(getattr(REFERENCE, name))
    assert_noticed(monkeypatch, FAMILIES, given, where, name, old, new, said)
